"""Tables and figures, made from records and published numbers alone."""
