"""Weights on disk, of three makes, each to and from the one model: ours, TensorFlow's as released, Hugging Face's."""
