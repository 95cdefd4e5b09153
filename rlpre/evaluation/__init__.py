"""What an encoder and a study are worth: statistics, probes, and pages that show them."""
