"""Four-step alternating training of Faster R-CNN (arXiv 1506.01497, section 3.2).

1. The RPN learns, with a backbone of its own.
2. Fast R-CNN's head learns, with another backbone of its own, from the proposals of the first step's RPN.
3. The RPN learns on the second step's backbone, which stays as it is from here on: the two share it.
4. The head learns on the same, from the proposals of the third step's RPN.

Each step is a run of `train`, with its folder: 1_rpn, 2_head, 3_rpn, 4_head. The last one holds the whole detector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from detkit.data.ahead import read_ahead
from detkit.data.dataset import Wanted, load_dataset
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import Model, load
from detkit.ops.boxes import clip
from detkit.predict.runs import require_free, run_folder
from detkit.train.config import read_train_config
from detkit.train.run import Job, Trained, train

_SHARED = "train.freeze=all_but_head"  # the backbone and its pyramid


def train_alternately(
    config: str | Path,
    job: Job,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    weights: Path | None = None,
    console: Console | None = None,
) -> Trained:
    """Train a Faster R-CNN in four steps, each as long as its config says; arguments and errors as `train`.

    weights: what the first two steps start from, each anew.
    """
    options = read_train_config(config, settings)
    if options.detector.name != "faster_rcnn":  # type: ignore[attr-defined]
        raise DetkitError(f"{config}: only faster_rcnn is trained by alternating, not {options.detector.name}")  # type: ignore[attr-defined]
    if job.devices * job.nodes > 1:
        raise DetkitError("alternating training runs in one process; leave out --devices and --nodes")
    own = [*settings, "train.alternating=false"]
    if out is not None:
        require_free(out)
    with run_folder("train", out) as folder:

        def step(name: str, start: Path | None, *changes: str) -> Path:
            train(config, job, settings=[*own, *changes], out=folder / name, weights=start, console=console)
            return folder / name / "last.safetensors"

        rpn = step("1_rpn", weights, "detector.loss.learn=rpn")
        file = folder / "proposals.jsonl"
        write_proposals(load(rpn, device=job.device), job, file)
        given = json.dumps({"method": "file", "path": str(file.resolve())})  # JSON is YAML too
        head = step("2_head", weights, "detector.loss.learn=head", f"proposals={given}")
        shared = step("3_rpn", head, "detector.loss.learn=rpn", _SHARED)
        trained = train(
            config,
            job,
            settings=[*own, "detector.loss.learn=head", _SHARED],
            out=folder / "4_head",
            weights=shared,
            console=console,
        )
        assert trained is not None  # one process
        return replace(trained, folder=folder / "4_head")


def write_proposals(model: Model, job: Job, path: Path) -> None:
    """Write an RPN's proposals of all pictures of a job as lines of JSON, as `proposals: {method: file}` reads them.

    They are as many as for training, of the pictures as evaluation sees them; augmentation moves both together.
    """
    learned = load_dataset(job.data, job.split or Wanted.LEARNED)
    evaluated = load_dataset(job.data, job.val_split)
    samples = {str(sample.path): sample for dataset in (learned, evaluated) for sample in dataset.samples}
    lines = []
    readers = (sample.read for sample in samples.values())
    with closing(read_ahead(readers, lambda picture: picture.size // 3, workers=2, ahead=8)) as pictures:
        for source, picture in zip(samples, pictures, strict=True):
            boxes, scores = rpn_proposals(model, picture)
            rows = zip(boxes.tolist(), scores.tolist(), strict=True)
            found = [{"box": [round(side, 2) for side in box], "score": score} for box, score in rows]
            height, width = picture.shape[:2]
            lines.append(json.dumps({"source": source, "width": width, "height": height, "proposals": found}))
    write_atomically(path, "\n".join(lines) + "\n")


@torch.inference_mode()
def rpn_proposals(model: Model, picture: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the proposals of a Faster R-CNN's RPN for a picture [H, W, 3], as many as for training, best first.

    Boxes [P, 4] in the picture's pixels, thicker than their rounding to hundredths, and scores [P].
    """
    detector = model.detector
    assert isinstance(detector, FasterRCNN)
    batch, (placement,) = model.preprocess([picture])
    table = detector.proposals(batch.to(model.device), detector.config.rpn.training).to("cpu")
    count = table.count[0]
    boxes = clip(placement.to_picture(table.boxes[0, :count]), *placement.picture)
    keep = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= 0.02
    return boxes[keep], table.scores[0, :count][keep]
