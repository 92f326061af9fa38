"""Weights in and out: detkit checkpoints, Darknet files."""
