"""Measuring: statistics of runs."""
