"""A data set in the labels of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from detkit.data.names import match_classes, shorten
from detkit.data.sample import Dataset, count
from detkit.errors import DetkitError


def relabel(dataset: Dataset, classes: tuple[str, ...], say: Callable[[str], None]) -> Dataset:
    """Give the objects of a data set the labels of the model; objects of other classes are left out, and counted."""
    if dataset.classes == classes:
        return dataset
    matched = match_classes(classes, dataset.classes)
    for line in matched.lines:
        say(line)
    if all(label is None for label in matched.to_model):
        raise DetkitError(
            f"{dataset.source}: none of its classes ({shorten(dataset.classes)}) is among the model's "
            f"({shorten(classes)}); a model learns those of the data where its config names no `classes`"
        )
    table = np.array([-1 if label is None else label for label in matched.to_model])
    samples, dropped, pictures = [], 0, 0
    for sample in dataset.samples:
        labels = table[sample.labels]
        keep = labels >= 0
        if sample.somewhere and not keep.any():  # it would teach that there is nothing
            pictures += 1
            continue
        dropped += int((~keep).sum())
        rows = {name: getattr(sample, name)[keep] for name in ("boxes", "crowd", "difficult")}
        samples.append(replace(sample, labels=labels[keep], **rows))
    if dropped:
        say(f"{count(dropped, 'object')} of classes that are unknown to the model left out")
    if pictures:
        say(f"{count(pictures, 'picture')} whose label is unknown to the model left out")
    return replace(dataset, classes=classes, samples=samples)
