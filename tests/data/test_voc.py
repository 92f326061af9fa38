from pathlib import Path

import pytest
from PIL import Image

from detkit.data.dataset import load_dataset
from detkit.data.names import CLASS_LISTS
from detkit.data.voc import read_voc
from detkit.errors import DetkitError


def thing(name: str = "cat", box: str = "1 2 30 40", extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=False)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{extra}<bndbox>{bndbox}</bndbox></object>"


SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def write(folder: Path, stem: str, *parts: str, root: str = "annotation") -> Path:
    file = folder / "Annotations" / f"{stem}.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"<{root}>{''.join(parts)}</{root}>")
    (folder / "JPEGImages").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40)).save(folder / "JPEGImages" / f"{stem}.png")
    return file


def test_reads_boxes_as_written_and_difficult(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write(tmp_path, "a.b", SIZE, thing(extra="<difficult>1</difficult>"), thing("dog", "5.5 1 60 40", part))
    write(tmp_path, "b", SIZE)
    data = load_dataset(tmp_path)
    assert data.split is None
    assert data.classes == CLASS_LISTS["voc"]
    assert data.category_ids == tuple(range(1, 21))
    a, b = data.samples
    assert (a.id, a.path.name) == ("a.b", "a.b.png")
    assert a.boxes.tolist() == [[1, 2, 30, 40], [5.5, 1, 60, 40]]
    assert a.difficult.tolist() == [True, False]
    assert [data.classes[label] for label in a.labels] == ["cat", "dog"]
    assert len(b.labels) == 0
    assert a.read().shape == (40, 60, 3)


def test_a_byte_order_mark_and_an_empty_flag_say_nothing(tmp_path):
    write(tmp_path, "a", SIZE, thing(extra="<difficult/>"))
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfa\n")
    (sample,) = read_voc(tmp_path, listing).samples
    assert sample.difficult.tolist() == [False]


def test_ground_truth_marks_difficult_objects(tmp_path):
    write(tmp_path, "a", SIZE, thing("x", extra="<difficult>1</difficult>"), thing("y", "0 0 10 10"))
    assert read_voc(tmp_path, None).ground_truth() == {
        "images": [{"id": "a", "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {"id": 1, "image_id": "a", "category_id": 1, "bbox": [1, 2, 29, 38], "area": 29 * 38, "iscrowd": 0,
             "difficult": 1},
            {"id": 2, "image_id": "a", "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0,
             "difficult": 0},
        ],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
    }  # fmt: skip


def test_classes_are_the_same_in_every_split(tmp_path):
    write(tmp_path, "a", SIZE, thing("helmet"))
    write(tmp_path, "b", SIZE, thing("person"))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n\n")
    (lists / "cat_val.txt").write_text("b -1\n")
    for split in ("train", "val"):
        data = load_dataset(tmp_path, split)
        assert data.classes == ("helmet", "person")
        assert len(data) == 1
    assert load_dataset(tmp_path).split == "val"
    with pytest.raises(DetkitError, match=r"there is no split 'vall'; did you mean 'val'.*\(there are train, val\)"):
        load_dataset(tmp_path, "vall")


def test_classes_given(tmp_path):
    write(tmp_path, "a", SIZE, thing("cat"), thing("dog"))
    assert read_voc(tmp_path, None, classes=["dog", "cat"]).samples[0].labels.tolist() == [1, 0]
    with pytest.raises(
        DetkitError, match=r"a\.xml: object 1: name: 'cat' is not among the classes; did you mean 'cats'"
    ):
        read_voc(tmp_path, None, classes=["dog", "cats"])


def test_missing_pictures_are_counted(tmp_path):
    write(tmp_path, "a", SIZE)
    write(tmp_path, "b", SIZE, thing())
    (tmp_path / "JPEGImages" / "b.png").unlink()
    data = read_voc(tmp_path, None)
    assert data.notes == [f"{tmp_path}/JPEGImages: 1 of 2 pictures not found, the first is b"]
    with pytest.raises(DetkitError, match=r"b\.jpg: no such file"):
        data.samples[1].read()


def test_lists(tmp_path):
    write(tmp_path, "cat1", SIZE)
    listing = tmp_path / "x.txt"
    for text, message in (
        ("cat1\n\ncat2\n", r"x\.txt, line 3: there is no annotation cat2\.xml; did you mean 'cat1'"),
        ("cat1\ncat1\n", r"x\.txt, line 2: 'cat1' stands in line 1 already"),
    ):
        listing.write_text(text)
        with pytest.raises(DetkitError, match=message):
            read_voc(tmp_path, listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DetkitError, match=r"x\.txt: is not a text file"):
        read_voc(tmp_path, listing)
    with pytest.raises(DetkitError, match=r"y\.txt: cannot be read"):
        read_voc(tmp_path, tmp_path / "y.txt")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([thing()], "<size/height> is missing"),
        (["<size><width>0</width><height>40</height></size>"], r"size/width: expected a positive whole number, got 0"),
        (["<size><width>x</width><height>40</height></size>"], r"size/width: expected a number, got 'x'"),
        (["<size><width>inf</width><height>40</height></size>"], r"size/width: expected a positive whole number"),
        ([SIZE, thing(), thing(box="1 2 3")], r"object 2 \(cat\): <bndbox/ymax> is missing"),
        ([SIZE, thing(box="1 2 3 four")], r"object 1 \(cat\): bndbox/ymax: expected a number, got 'four'"),
        ([SIZE, thing(box="1 2 nan 4")], r"object 1 \(cat\): bndbox: .*not finite"),
        ([SIZE, thing(box="9 2 3 4")], r"object 1 \(cat\): bndbox: .*inverted"),
        ([SIZE, thing(box="60 2 70 4")], r"object 1 \(cat\): bndbox: .*wholly outside"),
        ([SIZE, "<object><bndbox/></object>"], "object 1: <name> is missing or empty"),
        ([SIZE, thing(extra="<difficult>maybe</difficult>")], r"object 1 \(cat\): difficult: expected a number"),
        (["<size>"], "is not valid XML"),
    ],
)
def test_bad_annotations(tmp_path, parts, message):
    write(tmp_path, "a", *parts)
    with pytest.raises(DetkitError, match=rf"a\.xml: .*{message}"):
        read_voc(tmp_path, None)


def test_xml_of_another_kind(tmp_path):
    file = write(tmp_path, "a", root="html")
    with pytest.raises(DetkitError, match=r"a\.xml: expected <annotation> at the top of a VOC file, got <html>"):
        read_voc(tmp_path, None)
    file.write_text("{}")
    with pytest.raises(DetkitError, match=r"a\.xml: is not valid XML"):
        read_voc(tmp_path, None)
    for encoding in ("foobar", "utf-32"):
        file.write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
        with pytest.raises(DetkitError, match=r"a\.xml: its encoding cannot be read .*UTF-8"):
            read_voc(tmp_path, None)
    file.write_text('<!DOCTYPE a [<!ENTITY b "boom">]><annotation>&b;</annotation>')
    with pytest.raises(DetkitError, match=r"a\.xml: declares XML entities"):
        read_voc(tmp_path, None)
    file.unlink()
    with pytest.raises(DetkitError, match="there are no annotations"):
        read_voc(tmp_path, None)


@pytest.mark.parametrize(
    ("folder", "splits", "pictures", "objects", "difficult", "classes"),
    [
        ("voc2012_sample100", ["trainval"], 100, 273, 38, 20),
        ("VOC2007_sample13", ["trainval", "test"], 13, 41, 6, 20),
        ("bccd", ["train", "val", "test"], 364, 4886, 0, 3),
        ("raccoon", ["trainval", "test"], 200, 217, 0, 1),
    ],
)
def test_real_data(shared, folder, splits, pictures, objects, difficult, classes):
    sets = [load_dataset(shared / folder, split) for split in splits]
    samples = [sample for data in sets for sample in data.samples]
    assert len(samples) == pictures
    assert sum(len(sample.labels) for sample in samples) == objects
    assert sum(int(sample.difficult.sum()) for sample in samples) == difficult
    assert {len(data.classes) for data in sets} == {classes}
    assert all(data.notes == [] for data in sets)
    for sample in samples[:5]:
        assert sample.read().shape == (sample.height, sample.width, 3)


def test_grey_pictures_of_real_data(shared):
    data = load_dataset(shared / "raccoon", "trainval")
    modes = {sample.path: Image.open(sample.path).mode for sample in data.samples}
    grey = [sample for sample in data.samples if modes[sample.path] == "L"]
    assert grey
    for sample in grey:
        assert sample.read().shape == (sample.height, sample.width, 3)
