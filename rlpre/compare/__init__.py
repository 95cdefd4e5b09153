"""Compare ways to use encoders: arms, runs, and one report."""
