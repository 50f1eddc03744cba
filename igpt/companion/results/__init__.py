"""What a stage found, whether it still holds, and what it says of the paper."""
