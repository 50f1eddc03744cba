"""What the post and the paper claim, as data: declared before it is run."""
