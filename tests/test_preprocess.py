from unittest.mock import patch

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from detkit.preprocess import Placement, Preprocess
from detkit.structures import Detections

MODES = [
    Preprocess(mode="stretch", size=(96, 128)),
    Preprocess(mode="letterbox", size=(96, 128)),
    Preprocess(mode="letterbox", size=(96, 128), minimal=True),
    Preprocess(mode="letterbox", size=(96, 128), interpolation="darknet"),
    Preprocess(mode="shortest_edge", size=(80, 130), interpolation="float_linear"),
]


CENTER = Preprocess(mode="center_crop", size=(96, 128), crop=0.75)


@pytest.mark.parametrize("preprocess", [*MODES, CENTER])
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_boxes_come_back(preprocess, height, width) -> None:
    placement = preprocess.place(height, width)
    boxes = torch.tensor([[0.0, 0, width, height], [width / 4, height / 3, width / 2, height / 1.5]])
    back = placement.to_picture(placement.to_canvas(boxes))
    torch.testing.assert_close(back, boxes, atol=2e-3 * max(height, width) / 100, rtol=1e-4)


@pytest.mark.parametrize("preprocess", MODES)
@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_the_picture_lies_where_the_placement_says(preprocess, height, width) -> None:
    batch, (placement,) = preprocess([np.full((height, width, 3), 255, np.uint8)])
    canvas = batch.images[0]
    assert all(side % preprocess.divisor == 0 for side in canvas.shape[1:])
    assert batch.sizes.tolist() == [list(placement.resized)]
    (top, left), (h, w) = map(int, placement.offset), placement.resized
    assert torch.all(canvas[:, top : top + h, left : left + w] > 0.99)
    assert int((canvas[0] > 0.99).sum()) == h * w


def test_letterbox_by_hand() -> None:
    preprocess = Preprocess(size=(416, 416))
    assert preprocess.place(576, 768) == Placement((576, 768), (312, 416), (52, 0))
    assert preprocess.place(424, 640) == Placement((424, 640), (276, 416), (70, 0))
    minimal = Preprocess(size=(416, 416), minimal=True)
    assert minimal.place(576, 768) == Placement((576, 768), (312, 416), (4, 0))
    darknet = Preprocess(size=(416, 416), interpolation="darknet")
    assert darknet.place(424, 640) == Placement((424, 640), (275, 416), (70.5, 0))


def test_shortest_edge_by_hand() -> None:
    preprocess = Preprocess(mode="shortest_edge", size=(800, 1333))
    assert preprocess.place(480, 640).resized == (800, 1066)
    assert preprocess.place(300, 1200).resized == (333, 1333)


@pytest.mark.parametrize("interpolation", ["pillow_cubic", "linear", "float_linear"])
def test_center_crop_of_a_very_long_picture_takes_no_memory_for_the_rest(interpolation) -> None:
    column = np.zeros((60_001, 1, 3), np.uint8)
    column[29_999:30_002] = 255
    preprocess = Preprocess(mode="center_crop", size=(32, 32), interpolation=interpolation)
    for picture in (column, column.transpose(1, 0, 2)):
        with patch.object(Preprocess, "_resize", autospec=True, side_effect=Preprocess._resize) as resize:
            batch, (placement,) = preprocess([picture])
        assert max(placement.resized) == 36 * 60_001
        assert [max(call.args[2]) for call in resize.call_args_list] == [36 * 65]
        assert batch.images.min() > 0.99  # each of its pixels becomes 36 × 36


def test_center_crop_by_hand() -> None:
    preprocess = Preprocess(mode="center_crop", size=(224, 224))
    assert preprocess.place(480, 640) == Placement((480, 640), (256, 341), (-16, -58))
    assert preprocess.place(640, 480) == Placement((640, 480), (341, 256), (-58, -16))
    # 96 × 128 of 128 × 170: a square is scaled until it is 170 wide.
    assert CENTER.place(10, 10) == Placement((10, 10), (170, 170), (-37, -21))
    assert CENTER.place(100, 1000) == Placement((100, 1000), (128, 1280), (-16, -576))
    batch, _ = CENTER([np.full((100, 1000, 3), 255, np.uint8), np.full((7, 3, 3), 255, np.uint8)])
    assert batch.images.shape == (2, 3, 96, 128)
    assert batch.sizes.tolist() == [[96, 128]] * 2
    assert batch.images.min() == 1


@pytest.mark.parametrize(("name", "crop"), [("bilinear", 0.875), ("bicubic", 0.9), ("bicubic", 1.0)])
@pytest.mark.parametrize("shape", [(375, 500), (501, 334), (90, 100)])
def test_center_crop_is_timms(name, crop, shape) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    theirs = timm.data.create_transform((3, 224, 224), interpolation=name, crop_pct=crop, mean=(0,) * 3, std=(1,) * 3)
    interpolation = {"bilinear": "pillow_linear", "bicubic": "pillow_cubic"}[name]
    batch, _ = Preprocess(mode="center_crop", size=(224, 224), interpolation=interpolation, crop=crop)([picture])
    assert torch.equal(batch.images[0], theirs(Image.fromarray(picture)))


def test_what_training_made_for_the_input_is_not_cut_again() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    batch, _ = CENTER.of_canvases((64, 96))([picture])
    assert np.array_equal((batch.images[0].permute(1, 2, 0) * 255).round().numpy(), picture)
    assert MODES[1].of_canvases((64, 96)) == MODES[1].model_copy(update={"size": (64, 96)})


def test_pictures_of_different_sizes_share_a_canvas() -> None:
    preprocess = Preprocess(mode="shortest_edge", size=(64, 200), fill=0.25)
    batch, _ = preprocess([np.zeros((64, 128, 3), np.uint8), np.zeros((100, 64, 3), np.uint8)])
    assert batch.images.shape == (2, 3, 128, 128)
    assert batch.images[0, 0, 127, 0] == 0.25
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_darknet_interpolation_aligns_corners() -> None:
    ramp = np.repeat(np.array([[[0] * 3, [100] * 3, [200] * 3]], np.uint8), 2, 0)
    batch, _ = Preprocess(mode="stretch", size=(2, 5), interpolation="darknet", divisor=1)([ramp])
    assert (batch.images[0, 0, 0] * 255).tolist() == pytest.approx([0, 50, 100, 150, 200])
    half_pixel, _ = Preprocess(mode="stretch", size=(2, 6), interpolation="float_linear", divisor=1)([ramp])
    assert (half_pixel.images[0, 0, 0] * 255).tolist() == pytest.approx([0, 25, 75, 125, 175, 200])


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(np.uint8)
    batch, _ = Preprocess(size=(32, 64))([pixels])
    assert np.array_equal((batch.images[0].permute(1, 2, 0) * 255).round().numpy(), pixels)


def test_size_must_fit_the_divisor() -> None:
    with pytest.raises(ValidationError, match="multiples of the divisor 32"):
        Preprocess(size=(400, 416))


def test_detections_go_back_to_the_picture_and_the_margin_is_left_out() -> None:
    boxes = torch.tensor([[10.0, 30.0, 50.0, 60.0], [0.0, 0.0, 100.0, 20.0]])  # the second is in the margin above
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), (100, 100))
    placed = Placement((100, 200), (50, 100), (25, 0)).restore(found)
    assert placed.boxes.tolist() == [[20.0, 10.0, 100.0, 70.0]]
    assert (placed.labels.tolist(), placed.size) == ([1], (100, 200))
