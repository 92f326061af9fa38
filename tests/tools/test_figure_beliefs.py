"""The figure of beliefs, of scores that are no probabilities."""

import subprocess
import sys
from pathlib import Path

import cv2
import torch

from detkit.data.names import class_names
from detkit.model import build_detector, read_config
from detkit.weights.checkpoint import Header, save_checkpoint

SCRIPT = Path(__file__).parents[2] / "tools" / "figure_beliefs.py"


def test_scores_above_one_are_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = read_config("yolov1_fasternet_raccoon", ["preprocess.size=[64, 64]", "detector.side=2"])
    detector = build_detector(config)
    with torch.no_grad():
        detector.head.output.bias.fill_(1.1)  # a class score and a confidence of 1.1 make 1.21
    save_checkpoint(
        tmp_path / "sure.safetensors",
        detector.state_dict(),
        Header(config.model_dump(mode="json"), class_names(config.classes), {}),
    )
    out = tmp_path / "out.png"
    subprocess.run([sys.executable, SCRIPT, "sample:chelsea", out, tmp_path / "sure.safetensors"], check=True)
    assert cv2.imread(str(out)).std() > 10
