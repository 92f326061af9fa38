"""Geometry and selection that all detectors share."""
