"""Reports on comparisons of agents."""
