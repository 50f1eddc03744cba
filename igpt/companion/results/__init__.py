"""Records of stages, whether they are still fresh, and verdicts on the paper's claims."""
