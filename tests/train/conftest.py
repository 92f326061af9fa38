"""A detector small enough to train in a second, and a few pictures to train it on."""

from pathlib import Path

import pytest

CONFIG = """\
# YOLOv3 on timm's smallest network, for tests.
detector:
  name: yolov3
  backbone: {name: timm/test_resnet}
  levels:
    - {stride: 16, anchors: [[12, 12], [24, 24], [40, 40]], width: 16, depth: 1}
    - {stride: 32, anchors: [[50, 50], [64, 64], [80, 80]], width: 16, depth: 1}
preprocess: {mode: letterbox, size: [96, 96]}
augment: {scale: [0.8, 1.2]}
train:
  epochs: 2
  batch_size: 8
  workers: 0
  optimizer: {name: sgd, lr: 0.01}
  ema: 0.9
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def data() -> str:
    """24 pictures to learn, 6 to evaluate."""
    return "sample:shapes?pictures=24&size=96"
