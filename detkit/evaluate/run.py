"""Evaluate a model, or detections made elsewhere, on a data set, and save what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detkit.data.ahead import read_ahead
from detkit.data.dataset import Dataset
from detkit.data.names import match_classes
from detkit.data.picture import MAX_PIXELS
from detkit.data.proposals import proposals_of
from detkit.data.sample import count
from detkit.errors import DetkitError
from detkit.evaluate.coco import CocoEvaluator, CocoResult, Program
from detkit.evaluate.confusion import confusion_matrix
from detkit.evaluate.plots import plot_confusion, plot_curves, to_png
from detkit.evaluate.records import DetectionTable, GroundTruth, read_results, to_results
from detkit.evaluate.voc import VocEvaluator, VocResult
from detkit.files import explained, write_atomically
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.predict.engine import detect_ahead
from detkit.predict.runs import next_run, require_free
from detkit.regions import Proposals

Metric = Literal["coco", "voc07", "voc"]

_READERS = 4
_FILES = ("metrics.json", "detections.json", "pr_curves.png", "confusion_matrix.png")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How good detections are: the metric's result, and what was compared."""

    result: CocoResult | VocResult
    truth: GroundTruth
    detections: DetectionTable

    def save(self, folder: Path) -> None:
        """Write metrics.json, detections.json (a COCO result list), pr_curves.png and confusion_matrix.png."""
        score, iou = 0.25, 0.5
        scores = {name: self.result.curve_score(name) for name in self.result.curves}
        curves = plot_curves(self.result.curves, scores, f"Precision over recall at IoU {self.result.curve_iou:.2f}")
        matrix = confusion_matrix(self.truth, self.detections, score, iou)
        confusion = plot_confusion(matrix, self.truth.classes, f"Confusion at score ≥ {score}, IoU ≥ {iou:.2f}")
        contents: tuple[str | bytes, ...] = (
            json.dumps(self.result.to_json(), indent=2) + "\n",
            json.dumps(to_results(self.detections, self.truth)),
            to_png(curves),
            to_png(confusion),
        )
        for name, content in zip(_FILES, contents, strict=True):
            write_atomically(folder / name, content)


def evaluate_model(
    model: Model,
    data: Dataset,
    *,
    metric: Metric = "coco",
    program: Program = "hotcoco",
    match_iou: float = 0.5,
    selection: Selection | None = None,
    batch_size: int = 8,
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Evaluation:
    """Detect in every picture of a data set and compare.

    program: who matches for COCO's metric. match_iou: the overlap that VOC's metric asks for. selection: by default the
    model's, with the score .001 and 100 detections a picture. max_pixels: of the largest picture to read. say: called
    with each line about classes that differ. advance: called with the number of pictures done. Raises DetkitError when
    pictures are missing, before any is read, when one cannot be read, or when the model shares no class with the data.
    """
    matched = match_classes(model.classes, data.classes)
    for line in matched.lines:
        say(line)
    if all(label is None for label in matched.to_model):
        raise DetkitError(
            f"{data.source}: none of its classes ({_list(data.classes)}) is known to the model {model.name} "
            f"({_list(model.classes)}); pass a model of these classes, or name them alike"
        )
    missing = [sample.path for sample in data.samples if sample.draw is None and not sample.path.is_file()]
    if missing:  # known before the work of hours
        raise DetkitError(
            f"{data.source}: {len(missing)} of {count(len(data), 'picture')} not found, the first is {missing[0]}; "
            "restore them, or leave them out of the annotations"
        )
    data_label = {label: index for index, label in enumerate(matched.to_model) if label is not None}
    to_data = [data_label.get(label) for label in range(len(model.classes))]
    truth = _ground_truth(data)
    evaluator = _evaluator(truth, to_data, metric, program, match_iou)
    if selection is None:
        selection = model.selection.model_copy(update={"score": 0.001, "max_detections": 100})
    if None in to_data:  # other classes shall not take places among `max_detections`
        selection = selection.model_copy(update={"labels": tuple(sorted(data_label))})
    proposed = proposals_of(data, model.proposals, max_pixels=max_pixels) if model.proposals is not None else None
    samples = iter(data.samples)
    readers = (partial(sample.read, max_pixels=max_pixels) for sample in data.samples)
    pictures = read_ahead(readers, lambda picture: picture.size // 3, workers=_READERS, ahead=2 * batch_size)
    batches = _batches(pictures, iter(proposed) if proposed is not None else None, batch_size)
    with closing(pictures), closing(detect_ahead(model, batches, selection)) as results:
        for _, found in results:
            for sample, detections in zip(islice(samples, len(found)), found, strict=True):
                evaluator.update(sample.id, detections)
            advance(len(found))
    return Evaluation(evaluator.compute(), truth, evaluator.detections)


def _batches(
    pictures: Iterator[NDArray[np.uint8]], proposals: Iterator[Proposals] | None, batch_size: int
) -> Iterator[tuple[None, list[NDArray[np.uint8]], list[Proposals] | None]]:
    while batch := list(islice(pictures, batch_size)):
        yield None, batch, list(islice(proposals, len(batch))) if proposals is not None else None
        del batch  # or its pictures would stay while the next ones gather


def evaluate_results(
    file: Path, data: Dataset, *, metric: Metric = "coco", program: Program = "hotcoco", match_iou: float = 0.5
) -> Evaluation:
    """Compare the detections of a COCO result list; the options are those of `evaluate_model`."""
    truth = _ground_truth(data)
    evaluator = _evaluator(truth, None, metric, program, match_iou)
    evaluator.extend(read_results(file, truth))
    return Evaluation(evaluator.compute(), truth, evaluator.detections)


@contextmanager
def results_folder(out: Path | None) -> Iterator[Path]:
    """Make the folder that results go to, by default `runs/eval/<n>`, and remove what was made if the block fails.

    It is made before the work, so that a lack of permission is known at once. Raises DetkitError if it is not empty.
    """
    wanted = out or Path("runs/eval/1")
    made = [path for path in (wanted, *wanted.parents) if not path.exists()]
    if out is None:
        folder = next_run("eval")
        made = [folder, *made[1:]]
    else:
        folder = out
        require_free(folder)
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException:
        for remove in [*((folder / name).unlink for name in _FILES), *(path.rmdir for path in made)]:
            with suppress(OSError):  # what was not made; a folder that holds anything else stays
                remove()
        raise


def _ground_truth(data: Dataset) -> GroundTruth:
    truth = GroundTruth.from_coco(data.ground_truth())
    if truth.classes != data.classes:  # labels would be taken for those of other classes
        raise DetkitError(f"{data.source}: its categories are not those read before; the file has changed meanwhile")
    return truth


def _evaluator(
    truth: GroundTruth, to_data: Sequence[int | None] | None, metric: Metric, program: Program, match_iou: float
) -> CocoEvaluator | VocEvaluator:
    if metric == "coco":
        return CocoEvaluator(truth, to_data, program)
    return VocEvaluator(truth, to_data, metric, match_iou)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 5 else [*names[:4], "…"])
