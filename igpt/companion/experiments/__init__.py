"""The claims of the post and the paper as data, declared before the runs."""
