import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data.sample import Objects, Picture, make_samples
from detkit.errors import DetkitError

PICTURES = [Picture(7, Path("a.png"), 40, 60), Picture("b", Path("b.png"), 10, 10), Picture(9, Path("c.png"), 5, 5)]


def table(rows: list[tuple[int, list[float]]]) -> Objects:
    return Objects(
        np.array([picture for picture, _ in rows], np.int64),
        np.array([box for _, box in rows], np.float64).reshape(-1, 4),
        np.arange(len(rows)),
        np.array([i % 2 == 1 for i in range(len(rows))], bool),
        np.zeros(len(rows), bool),
    )


def describe(row: int) -> str:
    return f"x.json, row {row}"


def test_objects_go_to_their_pictures_in_order():
    rows = [(2, [0, 0, 5, 5]), (0, [1, 2, 3, 4]), (2, [1, 1, 2, 2]), (0, [5, 6, 7, 8])]
    samples, notes = make_samples(PICTURES, table(rows), describe)
    assert [sample.labels.tolist() for sample in samples] == [[1, 3], [], [0, 2]]
    assert [sample.boxes.shape for sample in samples] == [(2, 4), (0, 4), (2, 4)]
    assert samples[0].crowd.tolist() == [True, True]
    assert samples[0].boxes.dtype == np.float32
    assert [sample.id for sample in samples] == [7, "b", 9]
    assert notes == []


def test_no_objects_and_no_pictures():
    samples, notes = make_samples(PICTURES, table([]), describe)
    assert [len(sample.labels) for sample in samples] == [0, 0, 0]
    assert notes == []
    assert make_samples([], table([]), describe) == ([], [])


def test_boxes_partly_outside_are_clipped_and_counted():
    rows = [(0, [-5, 1, 10, 50]), (0, [0, 0, 60.009, 40]), (1, [3, 3, 11, 9])]
    samples, notes = make_samples(PICTURES, table(rows), describe)
    assert samples[0].boxes.tolist() == [[0, 1, 10, 40], [0, 0, 60, 40]]
    assert samples[1].boxes.tolist() == [[3, 3, 10, 9]]
    assert notes == ["2 boxes clipped to the picture: x.json, row 0; x.json, row 2"]


def test_boxes_without_area_are_left_out_and_named():
    rows = [(0, [4, 4, 4, 9]), (0, [1, 1, 2, 2]), (1, [3, 3, 9, 3]), (0, [60, 2, 60, 9])]
    samples, notes = make_samples(PICTURES, table(rows), describe)
    assert samples[0].labels.tolist() == [1]
    assert len(samples[1].labels) == 0
    assert notes == ["3 boxes of zero width or height left out: x.json, row 0; x.json, row 2; x.json, row 3"]
    _, notes = make_samples(PICTURES, table([(0, [4, 4, 4, 9])] * 8), describe)
    assert notes[0].endswith("row 4; and 3 more")


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([float("nan"), 0, 1, 1], "not finite"),
        ([0, 0, float("inf"), 1], "not finite"),
        ([5, 0, 3, 1], "inverted"),
        ([0, 5, 3, 1], "inverted"),
        ([60, 0, 70, 1], "wholly outside"),
        ([0, 40, 3, 41], "wholly outside"),
        ([-9, 0, 0, 1], "wholly outside"),
        ([-9, -9, -1, -1], "wholly outside"),
    ],
)
def test_impossible_boxes(box, problem):
    with pytest.raises(DetkitError, match=rf"^x\.json, row 1: the box .*{problem}.* \(60 wide, 40 high\)"):
        make_samples(PICTURES, table([(0, [0, 0, 1, 1]), (0, box)]), describe)


def test_target_has_memory_of_its_own_and_samples_are_read_only():
    (sample, *_), _ = make_samples(PICTURES, table([(0, [1, 2, 3, 4])]), describe)
    target = sample.target()
    assert target.boxes.dtype == torch.float32
    assert target.labels.dtype == torch.int64
    assert target.crowd.dtype == target.difficult.dtype == torch.bool
    target.boxes.add_(1)
    assert sample.boxes.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ValueError, match="read-only"):
        sample.boxes[0] = 0


def test_a_sample_survives_pickling():
    (sample, *_), _ = make_samples(PICTURES, table([(0, [1, 2, 3, 4])]), describe)
    copy = pickle.loads(pickle.dumps(sample))
    assert copy.path == sample.path
    np.testing.assert_array_equal(copy.boxes, sample.boxes)


def test_the_picture_must_have_the_recorded_size(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (11, 10)).save(tmp_path / "b.png")
    good, bad, missing = (picture._replace(path=tmp_path / picture.path) for picture in PICTURES)
    good, bad, missing = make_samples([good, bad, missing], table([]), describe)[0]
    assert good.read().shape == (40, 60, 3)
    with pytest.raises(
        DetkitError, match=r"b\.png: the picture is 11 wide and 10 high.*annotation says 10 wide and 10"
    ):
        bad.read()
    with pytest.raises(DetkitError, match=r"c\.png: no such file"):
        missing.read()


@pytest.mark.parametrize("oriented", [False, True])
def test_the_recorded_size_tells_whether_the_annotator_saw_the_picture_turned(tmp_path, oriented):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "a.png"
    Image.new("RGB", (60, 40)).save(file, exif=exif)
    for height, width in ((40, 60), (60, 40)):
        (sample,), _ = make_samples([Picture(0, file, height, width)], table([]), describe, oriented=oriented)
        assert sample.read().shape == (height, width, 3)
