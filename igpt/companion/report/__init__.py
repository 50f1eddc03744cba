"""Tables and figures, made only from records and published numbers."""
