"""Pre-training: recipes, the training loop, and their costs."""
