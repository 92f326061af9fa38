"""How good detections are: COCO and VOC metrics, curves, confusion."""
