"""A classifier small enough to train in seconds."""

from pathlib import Path

import pytest

CONFIG = """\
# timm's smallest network as a classifier, for tests.
classifier: {backbone: {name: timm/test_resnet}}
preprocess: {mode: stretch, size: [64, 64], interpolation: area}
augment: {area: [0.5, 1], flip: 0.5}
train:
  epochs: 2
  batch_size: 16
  workers: 0
  optimizer: {name: adamw, lr: 0.003}
  label_smoothing: 0.1
  mixup: 0.2
  cutmix: 1
  ema: 0.9
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def data() -> str:
    """Pictures of coloured shapes; a classifier sees the shapes alone."""
    return "sample:shapes?pictures=24&size=96"
