"""Classifying pictures: one network over every backbone, its model, its recipe."""
