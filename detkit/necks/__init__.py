"""Networks between a backbone and the heads."""
