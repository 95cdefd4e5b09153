"""Reports: pictures, curves, tables."""
