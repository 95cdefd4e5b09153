"""Offline frames: the store, everything that fills it, and windows of its trajectories."""
