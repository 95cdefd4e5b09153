"""Reports on studies of transfer."""
