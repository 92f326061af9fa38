"""The search as a moving picture."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.detectors.sliding_window import SlidingWindow, SlidingWindowConfig
from detkit.errors import DetkitError
from detkit.inference import for_inference
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.predict.predictor import detect
from detkit.predict.windows import search_animation
from detkit.preprocess import Preprocess
from detkit.structures import Detections


@pytest.fixture
def windows() -> Model:
    """Looks at 24 windows, side by side, of a picture of 192 × 128, which is then 96 × 64."""
    preprocess = Preprocess(mode="stretch", size=(64, 96))
    return Model(spots(1), preprocess, Selection(), ("spot",), "spots", torch.device("cpu"), "fp32")


def found_nothing() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), (128, 192))


def spots(classes: int) -> SlidingWindow:
    tree = {"backbone": {"name": "darknet_tiny"}, "stride": 8, "crop": 16}
    tree["windows"] = {"scales": [16], "aspect_ratios": [1], "stride": 16}
    torch.manual_seed(0)
    return SlidingWindow(SlidingWindowConfig.model_validate(tree), classes, (64, 96)).eval()


def frames(gif: bytes) -> list[np.ndarray]:
    file = Image.open(io.BytesIO(gif))
    assert file.format == "GIF"
    found = []
    for number in range(file.n_frames):
        file.seek(number)
        found.append(np.asarray(file.convert("RGB")).astype(int))
    return found


def test_windows_move_and_hot_ones_stay(windows: Model) -> None:
    picture = np.full((128, 192, 3), (0, 60, 120), np.uint8)
    found = Detections(torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([0.9]), torch.tensor([0]), (128, 192))
    for score, hot in ((1.0, False), (0.0, True)):
        search = frames(search_animation(windows, picture, found, Selection(score=score)))
        assert len(search) == 24 + 1
        assert search[0].shape == (128, 192, 3)
        # The first window, at the top left, is white at first; the last frame of the search has moved on.
        assert search[0][0, 16].min() > 200
        yellow = search[-2][0, 16]
        assert (yellow[0] > 200 and yellow[2] < 90) == hot
        assert search[-2][96, 175].min() > 200
    assert np.abs(search[-1][20:60, 20] - picture[0, 0]).max() > 60, "what was found is drawn"


def test_windows_of_other_classes_are_not_hot(windows: Model) -> None:
    windows = replace(windows, detector=spots(2), classes=("spot", "stripe"))
    torch.nn.init.zeros_(windows.detector.classifier.head.weight)
    windows.detector.classifier.head.bias.data = torch.tensor([0.0, 9.0, 0.0])  # stripes everywhere
    picture, none = np.zeros((128, 192, 3), np.uint8), found_nothing()
    for labels, hot in (((), True), ((1,), True), ((0,), False)):
        gif = search_animation(windows, picture, none, Selection(score=0.5, labels=labels))
        red, _, blue = frames(gif)[-2][0, 16]
        assert (red > 200 and blue < 90) == hot


def test_a_search_in_half_precision(windows: Model, paint, tmp_path: Path) -> None:
    for_inference(windows.detector, windows.device, "bf16")
    detect(replace(windows, precision="bf16"), [str(paint("a.png"))], out=tmp_path / "out", show_windows=True)
    assert (tmp_path / "out" / "a-windows.gif").exists()


def test_a_gif_lies_beside_the_picture(windows: Model, paint, tmp_path: Path) -> None:
    path = paint("spot.png")
    summary = detect(windows, [str(path)], save=(), out=tmp_path / "out", show_windows=True)
    assert summary.folder == tmp_path / "out"
    assert [file.name for file in summary.folder.iterdir()] == ["spot-windows.gif"]
    assert len(frames((summary.folder / "spot-windows.gif").read_bytes())) > 1


def test_what_has_no_windows_to_show_is_named(windows: Model, model: Model, paint, film, tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="colors finds objects without sliding windows"):
        detect(model, [str(paint("a.png"))], out=tmp_path / "out", show_windows=True)
    with pytest.raises(DetkitError, match=r"clip\.mp4 is a video"):
        detect(windows, [str(film("clip.mp4", [(255, 0, 0)]))], out=tmp_path / "out", show_windows=True)
    assert not (tmp_path / "out").exists()
