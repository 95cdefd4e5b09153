"""Reports on encoders."""
