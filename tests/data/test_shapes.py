import numpy as np
import pytest

from detkit.data.dataset import load_dataset
from detkit.data.shapes import CLASSES, Shapes, _distance, draw, lay_out, load_shapes, parse_shapes, write_shapes
from detkit.errors import DetkitError

SMALL = Shapes(seed=1, pictures=6, size=96)


def test_parameters():
    assert parse_shapes("sample:shapes") == Shapes()
    assert parse_shapes("sample:shapes?seed=3&pictures=20&size=64") == Shapes(seed=3, pictures=20, size=64)
    for name, message in (
        ("sample:shapes?sed=3", "unknown key 'sed'; did you mean 'seed'"),
        ("sample:shapes?size=big", r"sample:shapes\?size=big: size: .*got 'big'"),
        ("sample:shapes?size=10", "size: .*greater than or equal to 64"),
        ("sample:shape", "did you mean 'sample:shapes'"),
    ):
        with pytest.raises(DetkitError, match=message):
            parse_shapes(name)


def test_splits():
    data = load_dataset("sample:shapes?pictures=20&size=64")
    assert (data.split, len(data), data.classes) == ("val", 5, CLASSES)
    assert len(load_dataset("sample:shapes?pictures=20&size=64", "train")) == 20
    assert len(load_dataset("sample:shapes?pictures=1", "test")) == 1
    with pytest.raises(DetkitError, match=r"there is no split 'tests'.*there are train, val, test"):
        load_dataset("sample:shapes", "tests")


def test_a_picture_depends_on_seed_split_and_index_alone():
    first = load_shapes(SMALL, "train").samples[2]
    again = load_shapes(Shapes(seed=1, pictures=60, size=96), "train").samples[2]
    np.testing.assert_array_equal(first.read(), again.read())
    np.testing.assert_array_equal(first.read(), draw(SMALL, "train", 2))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    layouts = [
        lay_out(SMALL, "train", 2),
        lay_out(SMALL, "train", 3),
        lay_out(SMALL, "val", 2),
        lay_out(Shapes(seed=2, pictures=6, size=96), "train", 2),
    ]
    assert len({repr(layout) for layout in layouts}) == 4


def test_boxes_enclose_what_is_drawn():
    seen = set()
    for index in range(6):
        (height, width), things = lay_out(SMALL, "train", index)
        y, x = np.mgrid[0:height:0.25, 0:width:0.25]
        for thing, box in zip(things, load_shapes(SMALL, "train").samples[index].boxes, strict=True):
            seen.add(thing.label)
            inside = _distance(thing, x, y) <= 0
            extent = np.array([x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max()])
            assert (box[:2] <= extent[:2]).all()
            assert (box[2:] >= extent[2:]).all()
            np.testing.assert_allclose(extent, box, atol=1.75)  # whole pixels, and tips thinner than the grid
    assert seen == set(range(len(CLASSES)))


def test_shapes_stand_out_of_the_ground(monkeypatch):
    (height, width), things = lay_out(SMALL, "train", 0)
    picture = draw(SMALL, "train", 0).astype(int)
    monkeypatch.setattr("detkit.data.shapes.lay_out", lambda *_: ((height, width), []))
    ground = draw(SMALL, "train", 0).astype(int)
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.any([_distance(thing, x, y) < 0 for thing in things], axis=0)
    difference = np.abs(picture - ground).mean(-1)
    assert difference[inside].mean() > 3 * difference[~inside].mean()


def test_the_set_is_varied():
    data = load_shapes(Shapes(pictures=200), "train")
    boxes = np.concatenate([sample.boxes for sample in data.samples])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert np.percentile(sides, 10) < 32
    assert np.percentile(sides, 90) > 80
    assert (boxes == np.round(boxes)).all()
    labels = np.bincount(np.concatenate([sample.labels for sample in data.samples]), minlength=len(CLASSES))
    assert labels.min() > 0.5 * labels.mean()
    counts = [len(sample.labels) for sample in data.samples]
    assert 0 < counts.count(0) < 30
    assert max(counts) == 8
    assert len({(sample.height, sample.width) for sample in data.samples}) > 20
    assert data.notes == []


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_round_trip(tmp_path, layout):
    write_shapes(tmp_path / "set", layout, SMALL)
    for split in SMALL.splits:
        made, read = load_shapes(SMALL, split), load_dataset(tmp_path / "set", split)
        assert read.classes == made.classes
        assert read.category_ids == made.category_ids
        assert read.notes == []
        assert len(read) == len(made)
        for a, b in zip(made.samples, read.samples, strict=True):
            assert (a.path.stem, a.height, a.width) == (b.path.stem, b.height, b.width)
            for field in ("boxes", "labels", "crowd", "difficult"):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        np.testing.assert_array_equal(made.samples[0].read(), read.samples[0].read())


def test_writing_leaves_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DetkitError, match="exists already"):
        write_shapes(tmp_path, "coco", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_picture_has_the_id_of_another_splits() -> None:
    both = load_dataset("sample:shapes?pictures=8", "train+val")
    assert len({sample.id for sample in both.samples}) == len(both)


def test_too_many_pictures_are_refused() -> None:
    with pytest.raises(DetkitError, match=r"pictures: input should be less than or equal to 100000\b"):
        load_dataset("sample:shapes?pictures=999999999999")
