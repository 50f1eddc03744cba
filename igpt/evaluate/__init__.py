"""The paper's evaluations, one protocol a file; each says what is trained, chosen and reported."""
