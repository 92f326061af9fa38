import json
from pathlib import Path

import pytest
import torch

import detkit
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.errors import DetkitError
from detkit.train.alternate import rpn_proposals, train_alternately
from detkit.train.run import Job, train
from detkit.weights.checkpoint import read_tensors

CONFIG = """\
# Faster R-CNN on timm's smallest network, for tests.
detector:
  name: faster_rcnn
  backbone: {name: timm/test_resnet}
  strides: [16]
  anchors: {sizes: [[24, 48]]}
  rpn: {training: {before: 100, after: 40}, inference: {before: 50, after: 20}}
  head: {widths: [16], pooling: {size: 3, method: align}}
  loss: {rpn: {cross_boundary: true, samples: 32}, roi: {samples: 16, background_iou: [0, 0.5]}}
preprocess: {mode: letterbox, size: [96, 96]}
augment: {jitter: 0, scale: [1, 1]}
train: {epochs: 1, batch_size: 4, workers: 0, ema: null, warmup: {epochs: 0}}
"""


@pytest.mark.slow
def test_four_steps_share_one_backbone_in_the_end(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    job = Job("sample:shapes?pictures=8&size=96", device="cpu")
    trained = train(config, job, settings=["train.alternating=true"], out=tmp_path / "run")
    assert trained is not None
    assert trained.folder == tmp_path / "run" / "4_head"
    rpn, head, rpn_again, last = (
        read_tensors(tmp_path / "run" / name / "last.safetensors") for name in ("1_rpn", "2_head", "3_rpn", "4_head")
    )
    first, second, third, fourth = (
        {name: tensor for name, tensor in tensors.items() if name.startswith("backbone")}
        for tensors in (rpn, head, rpn_again, last)
    )

    def differ(a, b, part: str) -> bool:
        return any(not torch.equal(a[name], b[name]) for name in a if name.startswith(part))

    assert differ(first, second, "backbone")
    assert not differ(second, third, "backbone")
    assert not differ(third, fourth, "backbone")
    assert differ(head, rpn_again, "rpn")
    assert not differ(head, rpn_again, "head")
    assert differ(rpn_again, last, "head")
    assert not differ(rpn_again, last, "rpn")

    # The second step learned from what the first one's RPN proposes.
    lines = [json.loads(line) for line in (tmp_path / "run" / "proposals.jsonl").read_text().splitlines()]
    assert len({line["source"] for line in lines}) == len(lines) > 8
    assert all(0 < len(line["proposals"]) <= 40 for line in lines)
    model = detkit.load(tmp_path / "run" / "1_rpn" / "last.safetensors", device="cpu")
    assert isinstance(model.detector, FasterRCNN)
    boxes, scores = rpn_proposals(model, torch.zeros(70, 120, 3, dtype=torch.uint8).numpy())
    assert len(boxes) == len(scores) > 0
    assert boxes.min() >= 0
    assert (boxes.amax(0) <= torch.tensor([120, 70, 120, 70])).all()
    assert (scores.diff() <= 0).all()


def test_other_detectors_do_not_alternate(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="only faster_rcnn is trained by alternating, not yolov3"):
        train_alternately("yolov3_tiny_coco", Job("sample:shapes"), out=tmp_path)
