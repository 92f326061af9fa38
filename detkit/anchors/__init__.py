"""Anchors for a data set: found, judged, drawn, and written into configs."""
