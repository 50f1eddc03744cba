"""Weights on disk: ours and Hugging Face's (read and written), TensorFlow's as released (read), ONNX (written)."""
