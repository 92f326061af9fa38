"""Models written for elsewhere."""
