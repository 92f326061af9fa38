"""The detectors, one file each; the table says where each name's class lives."""

from importlib import import_module
from typing import Any

from detkit.detectors.base import Detector
from detkit.errors import DetkitError, nearest

DETECTORS = {
    "darknet": "detkit.detectors.darknet:Darknet",
    "yolov1": "detkit.detectors.yolov1:YOLOv1",
    "rcnn": "detkit.detectors.rcnn:RCNN",
    "fast_rcnn": "detkit.detectors.fast_rcnn:FastRCNN",
    "faster_rcnn": "detkit.detectors.faster_rcnn:FasterRCNN",
    "sliding_window": "detkit.detectors.sliding_window:SlidingWindow",
    "yolo9000": "detkit.detectors.yolo9000:YOLO9000",
    "yolov2": "detkit.detectors.yolov2:YOLOv2",
    "yolov3": "detkit.detectors.yolov3:YOLOv3",
}


def detector_class(name: Any) -> type[Detector]:
    """Return the class of a detector's name."""
    if name not in DETECTORS:
        raise DetkitError(f"unknown detector {name!r}{nearest(str(name), DETECTORS)} (known: {', '.join(DETECTORS)})")
    module, _, attribute = DETECTORS[name].partition(":")
    found: type[Detector] = getattr(import_module(module), attribute)
    return found
