"""Batch after batch through a model: while one is computed, the next is prepared in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import repeat
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detkit.data.ahead import read_ahead
from detkit.model import Model, Prepared
from detkit.ops.nms import Selection
from detkit.regions import Proposals
from detkit.structures import Detections

Kept = TypeVar("Kept")


def detect_ahead(
    model: Model,
    batches: Iterable[tuple[Kept, list[NDArray[np.uint8]], list[Proposals] | None]],
    selection: Selection,
) -> Generator[tuple[Kept, list[Detections]]]:
    """Detect in the RGB pictures of batches, and yield what is kept beside each batch with the detections.

    The next batch is made in a thread: taken from `batches`, resized, copied to the GPU on a stream of its own. With
    `fill_batches` of the model, a batch that is smaller than one before is filled up with its last picture.
    """
    waiting = iter(batches)
    largest = 0

    def prepare() -> tuple[Kept, int, Prepared | None] | None:
        nonlocal largest
        if (batch := next(waiting, None)) is None:
            return None
        kept, pictures, proposals = batch
        largest = max(largest, len(pictures))
        missing = largest - len(pictures) if model.fill_batches and pictures else 0
        filled = [*pictures, *pictures[-1:] * missing]
        given = [*proposals, *proposals[-1:] * missing] if proposals else None
        return kept, len(pictures), model.prepare(filled, given) if filled else None

    with closing(read_ahead(repeat(prepare), lambda batch: 0, workers=1, ahead=1)) as prepared:
        for kept, pictures, batch in prepared:
            yield kept, model.detect(batch, selection)[:pictures] if batch is not None else []
