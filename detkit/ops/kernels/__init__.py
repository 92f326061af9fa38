"""Compiled forms of operations whose readable form stands beside the caller."""
