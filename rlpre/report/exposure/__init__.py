"""Reports on studies of exposure bias."""
