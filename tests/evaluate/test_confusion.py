from typing import Any

import numpy as np

from detkit.evaluate.confusion import confusion_matrix
from detkit.evaluate.records import DetectionTable, GroundTruth

A, B, BACKGROUND = 0, 1, 2


def truth(*rows: tuple[int, int, list[float], str]) -> GroundTruth:
    annotations: list[dict[str, Any]] = [
        {"image_id": image, "category_id": label, "bbox": box, "iscrowd": kind == "crowd",
         "difficult": kind == "difficult"}
        for image, label, box, kind in rows
    ]  # fmt: skip
    images = [{"id": 0}, {"id": 1}, {"id": 2}]
    return GroundTruth.from_coco(
        {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}
    )


def found(*rows: tuple[int, int, list[float], float]) -> DetectionTable:
    return DetectionTable(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[3] for row in rows], np.float64),
    )


def test_hand_computed():
    matrix = confusion_matrix(
        truth(
            (0, A, [0, 0, 10, 10], ""),  # seen as a
            (0, A, [20, 0, 10, 10], ""),  # seen as b
            (0, B, [40, 0, 10, 10], ""),  # overlapped by too little: missed
            (1, B, [0, 0, 10, 10], ""),  # seen twice
            (2, A, [0, 0, 10, 10], ""),  # seen with too low a score: missed
        ),
        found(
            (0, A, [0, 0, 10, 10], 0.9),
            (0, B, [20, 0, 10, 10], 0.8),
            (0, B, [40, 0, 10, 4.9], 0.7),  # IoU .49: of nothing
            (1, B, [0, 0, 10, 5], 0.6),  # IoU .5, and best score
            (1, A, [0, 0, 10, 10], 0.5),  # the object is taken: of nothing
            (2, A, [0, 0, 10, 10], 0.2),
        ),
    )
    assert matrix.tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 0]]


def test_thresholds_are_inclusive_and_can_be_set():
    objects = truth((0, A, [0, 0, 10, 10], ""))
    detections = found((0, A, [0, 0, 10, 5], 0.25))
    assert confusion_matrix(objects, detections).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert confusion_matrix(objects, detections, score=0.26).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert confusion_matrix(objects, detections, iou=0.51).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_a_detection_takes_the_free_object_it_overlaps_most():
    objects = truth((0, A, [0, 0, 10, 10], ""), (0, B, [0, 0, 10, 12], ""))
    detections = found((0, A, [0, 0, 10, 10], 0.6), (0, B, [0, 0, 10, 11], 0.5), (0, A, [0, 0, 10, 12], 0.4))
    assert confusion_matrix(objects, detections).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_crowds_and_difficult_objects_do_not_count():
    objects = truth((0, A, [0, 0, 100, 100], "crowd"), (1, B, [0, 0, 10, 10], "difficult"), (2, B, [9, 9, 5, 5], ""))
    detections = found(
        (0, A, [10, 10, 10, 10], 0.9),  # in the crowd
        (0, B, [95, 0, 10, 10], 0.9),  # half in the crowd
        (0, B, [96, 0, 10, 10], 0.9),  # less than half in it
        (1, B, [0, 0, 10, 10], 0.9),
        (1, A, [0, 0, 10, 10], 0.8),  # the difficult object is taken
    )
    assert confusion_matrix(objects, detections).tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 0]]


def test_without_objects_or_detections():
    assert confusion_matrix(truth(), found()).sum() == 0
    assert confusion_matrix(truth(), found((1, B, [0, 0, 1, 1], 0.9))).tolist() == [[0] * 3, [0] * 3, [0, 1, 0]]
    assert confusion_matrix(truth((1, B, [0, 0, 1, 1], "")), found()).tolist() == [[0] * 3, [0, 0, 1], [0] * 3]
