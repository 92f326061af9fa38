import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import validate
from detkit.data.augment import Augment, Augmenter, MultiScale
from detkit.data.sample import Dataset, Sample
from detkit.errors import DetkitError
from detkit.preprocess import Preprocess

OFF = {"flip": 0, "jitter": 0, "scale": (1, 1), "hue": 0, "saturation": 1, "exposure": 1}
NO_COLOR = {"hue": 0, "saturation": 1, "exposure": 1}


def paint(height, width, boxes, labels):
    """Black ground, objects filled with the channel of their label."""
    picture = np.zeros((height, width, 3), np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
        picture[y1:y2, x1:x2] = 0
        picture[y1:y2, x1:x2, label] = 255
    return picture


def painted(height, width, boxes, labels, crowd=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array(labels, np.int64)
    flags = np.array(crowd or [False] * len(labels), bool)
    draw = partial(paint, height, width, boxes, labels)
    return Sample("painted", Path("painted.png"), height, width, boxes, labels, flags, ~flags & False, draw=draw)


def dataset_of(*samples):
    return Dataset(Path("painted"), None, ("red", "green", "blue"), list(samples), (1, 2, 3), [])


def noise(height=60, width=90, seed=0, count=4):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.6, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(0.1, 0.4, (count, 2))]) * np.array([width, height] * 2)
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return replace(painted(height, width, boxes, rng.integers(0, 3, count)), draw=partial(np.array, pixels))


@st.composite
def scenes(draw):
    """A picture of up to three rectangles that do not touch, one in each third of its width."""
    height, width = draw(st.integers(40, 160)), draw(st.integers(48, 160))
    boxes, labels = [], []
    for third in range(draw(st.integers(0, 3))):
        left, right = third * width // 3, (third + 1) * width // 3
        x1 = draw(st.integers(left, right - 10))
        y1 = draw(st.integers(0, height - 10))
        boxes.append((x1, y1, draw(st.integers(x1 + 6, right - 3)), draw(st.integers(y1 + 6, height))))
        labels.append(draw(st.integers(0, 2)))
    return painted(height, width, boxes, labels)


def assert_boxes_cover_the_colors(picture, target, slack=2):
    """Each label's color is inside its boxes and fills them, but for `slack` pixels at the edges."""
    height, width = picture.shape[:2]
    for label in range(3):
        others = [channel for channel in range(3) if channel != label]
        color = picture[..., label].astype(int) - picture[..., others].max(-1) > 127
        inside, around = np.zeros((height, width), bool), np.zeros((height, width), bool)
        for x1, y1, x2, y2 in target.boxes[target.labels == label].tolist():
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            inside[int(y1 + slack) : max(0, int(y2 - slack)), int(x1 + slack) : max(0, int(x2 - slack))] = True
            around[max(0, round(y1 - slack)) : round(y2 + slack), max(0, round(x1 - slack)) : round(x2 + slack)] = True
        assert color[inside].all()
        # What is left of an object thinner than a pixel has no box.
        thick = cv2.morphologyEx(color.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        assert around[thick].all()


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1},
        {"jitter": 0.5},
        {"scale": (0.3, 0.9)},
        {"scale": (1, 2.5)},
        {"flip": 0.5, "jitter": 0.3, "scale": (0.25, 2)},
        {"mosaic": 1},
        {"flip": 0.5, "jitter": 0.3, "scale": (0.25, 2), "mosaic": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["letterbox", "stretch", "shortest_edge"])
@settings(max_examples=25)
@given(
    scene=scenes(),
    other=scenes(),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)).map(lambda size: (32 * size[0], 32 * size[1])),
)
def test_boxes_move_as_pixels_do(setting, mode, scene, other, seed, size) -> None:
    size = tuple(sorted(size)) if mode == "shortest_edge" else size
    augmenter = Augmenter(Augment(**{**OFF, **setting}, min_visibility=0), Preprocess(mode=mode))
    picture, target, _ = augmenter(dataset_of(scene, other), 0, epoch=3, seed=seed, size_hw=size)
    if setting == {"flip": 1}:
        assert np.array_equal(picture, scene.read()[:, ::-1])
        assert len(target) == len(scene.boxes)
    elif mode != "shortest_edge":
        assert picture.shape == (*size, 3)
    # A pixel of the picture is several of the canvas where it is blown up, and its edges blur over as many.
    blown_up = max(size) / 40 * setting.get("scale", (1, 1))[1] / (1 - setting.get("jitter", 0))
    assert_boxes_cover_the_colors(picture, target, slack=2 if blown_up < 10 else 3)


def test_zoom_by_hand() -> None:
    scene = painted(50, 100, [(10, 20, 40, 30)], [0])
    fits = Augmenter(Augment(**{**OFF, "scale": (0.5, 0.5)}), Preprocess(fill=0.25))
    picture, target, _ = fits(dataset_of(scene), 0, epoch=0, seed=0, size_hw=(64, 128))
    left, top = (target.boxes[0, :2] - torch.tensor([6.4, 12.8])).tolist()  # 100 x 50 at half of 1.28
    assert picture.shape == (64, 128, 3)
    assert 0 <= round(left) <= 64
    assert 0 <= round(top) <= 32
    torch.testing.assert_close(target.boxes[0, 2:] - target.boxes[0, :2], torch.tensor([19.2, 6.4]), atol=1e-3, rtol=0)
    assert (picture == 64).all(-1).sum() == 64 * 128 - 32 * 64


def test_mosaic_shows_four_pictures() -> None:
    scenes = [painted(64, 64, [(0, 0, 64, 64)], [label]) for label in (0, 1, 2, 0, 1, 2)]
    augmenter = Augmenter(Augment(**{**OFF, "mosaic": 1}, min_visibility=0), Preprocess())
    seen = set()
    for index in range(40):
        picture, target, _ = augmenter(dataset_of(*scenes), index % 6, epoch=index // 6, seed=0, size_hw=(96, 96))
        assert len(target) == 4
        assert target.labels[0] == index % 3  # its own picture has the first place
        assert ((target.boxes[:, 2:] - target.boxes[:, :2]) >= 0.2 * 96 - 1).all()
        assert int((target.boxes[:, 2:] - target.boxes[:, :2]).prod(1).sum()) == 96 * 96
        assert_boxes_cover_the_colors(picture, target)
        seen |= set(target.labels[1:].tolist())
    assert seen == {0, 1, 2}


def test_what_is_hardly_seen_is_dropped_unless_it_is_to_be_ignored() -> None:
    boxes = np.array([(0, 0, 20, 20), (40, 40, 70, 60), (75, 0, 100, 90)], np.float32)
    plain, crowds = (dataset_of(painted(100, 100, boxes, [0, 1, 2], flags)) for flags in ((), [True] * 3))
    everything, strict = (
        Augmenter(Augment(**{**OFF, "scale": (2, 2)}, min_visibility=least), Preprocess()) for least in (0, 0.4)
    )
    whole = boxes[:, 2:] - boxes[:, :2]
    shares = []
    for seed in range(60):
        where = {"epoch": 0, "seed": seed, "size_hw": (96, 96)}
        seen = everything(plain, 0, **where).target  # the picture is now 192 pixels wide and high
        kept = strict(plain, 0, **where).target
        share = ((seen.boxes[:, 2:] - seen.boxes[:, :2]).numpy() / (whole[seen.labels] * 1.92)).prod(1)
        assert kept.labels.tolist() == seen.labels[share >= 0.4].tolist()
        ignored = strict(crowds, 0, **where).target
        assert torch.equal(ignored.boxes, seen.boxes)
        assert ignored.crowd.all()
        shares += share.tolist()
    assert max(shares) == pytest.approx(1)
    assert sum(share < 0.4 for share in shares) > 20
    assert sum(0.4 < share < 0.9 for share in shares) > 20


def test_proposals_go_where_objects_go() -> None:
    scene, other = noise(seed=1), noise(seed=2)
    augmenter = Augmenter(Augment(mosaic=0.5), Preprocess())
    data = dataset_of(scene, other)
    counts = set()
    for seed in range(30):
        proposals = [sample.boxes for sample in data.samples]
        picture, target, moved = augmenter(data, 0, epoch=0, seed=seed, size_hw=(96, 96), proposals=proposals)
        assert torch.equal(moved, target.boxes)
        counts.add(len(moved))
        alone = augmenter(data, 0, epoch=0, seed=seed, size_hw=(96, 96))
        assert np.array_equal(alone.picture, picture)
        assert alone.proposals is None
        none = augmenter(data, 0, epoch=0, seed=seed, size_hw=(96, 96), proposals=[np.zeros((0, 4), np.float32)] * 2)
        assert none.proposals.shape == (0, 4)
    assert len(counts) > 3


def test_a_sample_follows_from_seed_epoch_and_index_alone() -> None:
    data = dataset_of(*(noise(seed=i) for i in range(5)))
    augment = Augment(mosaic=0.5)

    def draw(augmenter, index=1, epoch=2, seed=3):
        return augmenter(data, index, epoch=epoch, seed=seed, size_hw=(64, 96))

    first = Augmenter(augment, Preprocess())
    expected = draw(first)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the very state that must not matter
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    draw(first, index=4)
    for augmenter in (first, Augmenter(augment, Preprocess())):
        again = draw(augmenter)
        assert np.array_equal(again.picture, expected.picture)
        assert torch.equal(again.target.boxes, expected.target.boxes)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    for other in ({"index": 0}, {"epoch": 1}, {"seed": 2}, {"index": 2, "epoch": 1}):
        assert not np.array_equal(draw(first, **other).picture, expected.picture)


def test_flip_and_colour_are_independent() -> None:
    pixels = np.full((16, 16, 3), 100, np.uint8)
    pixels[:, 0] = 0
    sample = replace(painted(16, 16, [], []), draw=lambda: pixels)
    augmenter = Augmenter(Augment(**{**OFF, "flip": 0.5, "exposure": 2}), Preprocess())
    drawn = [augmenter(dataset_of(sample), 0, epoch=i, seed=0, size_hw=(32, 32)).picture for i in range(200)]
    flipped = np.array([picture[0, 0, 0] > picture[0, -1, 0] for picture in drawn])
    light = np.array([picture[8, 8, 0] for picture in drawn], float)
    assert 70 < flipped.sum() < 130
    assert light.min() < 60
    assert light.max() > 190
    assert abs(light[flipped].mean() - light[~flipped].mean()) < 20


def test_colour_changes_no_geometry_and_grey_stays_grey() -> None:
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (40, 50, 1)).astype(np.uint8), 3, 2)
    sample = replace(painted(40, 50, [(3, 4, 20, 30)], [1]), draw=lambda: grey)
    augmenter = Augmenter(Augment(**{**OFF, "hue": 0.5, "saturation": 2, "exposure": 2}), Preprocess())
    picture, target, _ = augmenter(dataset_of(sample), 0, epoch=0, seed=0, size_hw=(64, 64))
    assert target.boxes.tolist() == [[3, 4, 20, 30]]
    assert (picture.max(-1) - picture.min(-1)).max() <= 1
    assert not np.array_equal(picture, grey)


@pytest.mark.parametrize("setting", [{}, {"mosaic": 1}, OFF])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (200, 3)])
def test_small_thin_and_empty_pictures(setting, height, width) -> None:
    data = dataset_of(painted(height, width, [], []))
    augmenter = Augmenter(Augment(**setting), Preprocess())
    for epoch in range(10):
        picture, target, _ = augmenter(data, 0, epoch=epoch, seed=0, size_hw=(32, 64))
        assert picture.dtype == np.uint8
        assert target.boxes.shape == (0, 4)
        assert target.boxes.dtype == torch.float32
        assert target.labels.dtype == torch.int64
        assert target.crowd.dtype == target.difficult.dtype == torch.bool


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"flip": 1.5}, "flip: input should be less than or equal to 1, got 1.5"),
        ({"scale": [2, 1]}, "scale .* the smaller first"),
        ({"mosiac": 1}, "unknown key 'mosiac'; did you mean 'mosaic'"),
        ({"multi_scale": {"low": 320, "high": 600}}, "multi_scale: high 600 must be low 320 plus"),
    ],
)
def test_mistakes_in_a_configuration(tree, message) -> None:
    with pytest.raises(DetkitError, match=message):
        validate(Augment, tree, "config.yaml")
    assert validate(Augment, {"multi_scale": {}}, "config.yaml").multi_scale == MultiScale()


@pytest.mark.slow
def test_albumentations_is_imported_late_and_asks_nobody_for_a_newer_version() -> None:
    code = """
import os, socket, sys
os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
def refuse(*args, **kwargs):
    print("network")
    raise OSError
socket.socket.connect = socket.getaddrinfo = refuse
from detkit.data.augment import Augment, Augmenter
from detkit.preprocess import Preprocess
print("albumentations" in sys.modules)
Augmenter(Augment(), Preprocess())
print("albumentations" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True"]
