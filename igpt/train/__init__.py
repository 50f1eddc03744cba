"""Pre-training: the recipes, the loop that carries them out, and what they cost."""
