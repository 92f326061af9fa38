from pathlib import Path

import pytest
import yaml
from PIL import Image

from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError


def write(root: Path, labels: dict[str, str | None], tree: dict[str, object] | None = None) -> Path:
    """Pictures of 80 × 40 at root/<name>.png; the label file goes where YOLO has it."""
    for name, text in labels.items():
        picture = root / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 40)).save(picture)
        if text is not None:
            file = root / f"{name.replace('images', 'labels')}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    content = tree if tree is not None else {"names": ["ant", "bee"], "train": "images/train", "val": "images/val"}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


ONE = "1 0.5 0.5 0.25 0.5\n"


def test_reads_a_folder(tmp_path):
    write(tmp_path, {"images/val/a": ONE + "\n0 0.25 0.25 0.5 0.5\n", "images/val/deep/b": "", "images/val/c": None})
    data = load_dataset(tmp_path)
    assert (data.split, data.classes, data.category_ids) == ("val", ("ant", "bee"), (1, 2))
    a, c, b = data.samples
    assert [a.id, b.id, c.id] == ["a", "b", "c"]
    assert a.boxes.tolist() == [[30, 10, 50, 30], [0, 0, 40, 20]]
    assert a.labels.tolist() == [1, 0]
    assert len(b.labels) == len(c.labels) == 0
    assert data.notes == [f"1 picture without a label file taken as without objects, the first is {c.path}"]
    assert a.read().shape == (40, 80, 3)


@pytest.mark.parametrize("names", [{0: "ant", 1: "bee"}, ["ant", "bee"]])
@pytest.mark.parametrize("path", [{}, {"path": "."}, {"path": "../elsewhere"}, {"path": None}])
def test_data_yaml(tmp_path, names, path):
    root = tmp_path / "set"
    tree = {"names": names, "val": "../images/val", "train": None, "nc": 2, "roboflow": {"license": "MIT"}} | path
    write(root, {"images/val/a": ONE}, tree)
    data = load_dataset(root / "data.yaml")
    assert data.classes == ("ant", "bee")
    assert data.samples[0].labels.tolist() == [1]


def test_a_byte_order_mark_says_nothing(tmp_path):
    write(tmp_path, {"images/val/a": "\ufeff" + ONE})
    assert load_dataset(tmp_path).samples[0].labels.tolist() == [1]


def test_names_may_be_numbers(tmp_path):
    write(tmp_path, {"images/val/a": ONE}, {"names": [0, 1], "val": "images"})
    assert load_dataset(tmp_path).classes == ("0", "1")


def test_a_list_of_pictures_and_several_sources(tmp_path):
    write(
        tmp_path,
        {"images/x/a": ONE, "images/y/a": "", "images/z/b": ONE},
        {"names": ["ant", "bee"], "test": ["lists/test.txt", "images/z"]},
    )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "test.txt").write_text("images/x/a.png\n../images/y/a.png\n\n")
    data = load_dataset(tmp_path)
    assert data.split == "test"
    assert [len(sample.labels) for sample in data.samples] == [1, 0, 1]
    assert len({sample.id for sample in data.samples}) == 3
    (tmp_path / "lists" / "test.txt").write_text("images/x/a.png\nimages/x/b.png\n")
    with pytest.raises(DetkitError, match=r"test\.txt, line 2: there is no picture images/x/b\.png"):
        load_dataset(tmp_path)
    (tmp_path / "lists" / "test.txt").write_text("images/x/a.png\nimages/x/a.png\n")
    with pytest.raises(DetkitError, match=r"images/x/a\.png stands twice in the split 'test'"):
        load_dataset(tmp_path)


def test_labels_beside_the_pictures(tmp_path):
    write(tmp_path, {"pictures/a": ONE}, {"names": ["ant", "bee"], "val": "pictures"})
    assert load_dataset(tmp_path).samples[0].labels.tolist() == [1]


def test_polygons_become_boxes(tmp_path):
    write(tmp_path, {"images/val/a": "0 0.5 0.25 0.75 0.5 0.25 0.75\n"})
    data = load_dataset(tmp_path)
    assert data.samples[0].boxes.tolist() == [[20, 10, 60, 30]]
    assert data.notes == ["1 polygon replaced by the bounding box"]


def test_pictures_are_turned_as_exif_asks(tmp_path):
    write(tmp_path, {"images/val/a": ONE})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "images/val/a.png", exif=exif)
    (sample,) = load_dataset(tmp_path).samples
    assert (sample.height, sample.width) == (80, 40)
    assert sample.boxes.tolist() == [[15, 20, 25, 60]]
    assert sample.read().shape == (80, 40, 3)


def test_mended_boxes_are_noted(tmp_path):
    write(tmp_path, {"images/val/a": "0 0.5 0.5 0 0.1\n0 0 0.5 0.5 0.5\n"})
    data = load_dataset(tmp_path)
    assert data.samples[0].boxes.tolist() == [[0, 10, 20, 30]]
    file = tmp_path / "labels/val/a.txt"
    assert data.notes == [
        f"1 box clipped to the picture: {file}, line 2",
        f"1 box of zero width or height left out: {file}, line 1",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "the label 2 is not one of 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "the label -1 is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"the label 0\.5 is not one of"),
        ("nan 0.5 0.5 0.1 0.1", "the label nan is not one of"),
        ("0 0.5 0.5 0.1", "expected 5 numbers .* got 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "expected 5 numbers .* got 6"),
        ("0 0.5 0.5 0.1 x", "expected numbers: label cx cy w h, got '0 0.5 0.5 0.1 x'"),
        ("0 0.5 0.5 nan 0.1", "not finite"),
        ("0 0.5 0.5 -0.2 0.1", "inverted"),
        ("0 40 20 10 10", "wholly outside"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    write(tmp_path, {"images/val/a": f"{ONE}{line}\n"})
    with pytest.raises(DetkitError, match=rf"labels/val/a\.txt, line 2: .*{message}"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"names": ["a"], "nc": 2, "val": "images"}, r"data\.yaml: nc is 2, but names has 1"),
        ({"names": ["a", "a"], "val": "images"}, r"data\.yaml: a name stands twice"),
        ({"names": {1: "a"}, "val": "images"}, r"data\.yaml: names: expected the labels 0 to 0 as keys"),
        ({"names": [], "val": "images"}, r"data\.yaml: names: "),
        ({"names": ["a", "b"]}, r"data\.yaml: name a split \(there are none\)"),
        ({"names": ["a", "b"], "val": "pictures"}, r"data\.yaml, 'val': there is no folder or list .*pictures"),
        ({"names": ["a", "b"], "val": "empty"}, r"empty: the folder of the split 'val' holds no pictures"),
        ({"names": ["a", "b"], "val": "unlabelled"}, r"no picture of the split 'val' has a label file.*x\.txt"),
        ({"val": "images"}, r"data\.yaml: describes no data set: expected 'format' .* or 'names'"),
    ],
)
def test_bad_data_yaml(tmp_path, tree, message):
    write(tmp_path, {"images/val/a": ONE, "unlabelled/x": None}, tree)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DetkitError, match=message):
        load_dataset(tmp_path)


def test_a_binary_label_file(tmp_path):
    write(tmp_path, {"images/val/a": ONE})
    (tmp_path / "labels/val/a.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DetkitError, match=r"a\.txt: is not a text file"):
        load_dataset(tmp_path)


def test_a_damaged_picture_is_named(tmp_path):
    write(tmp_path, {"images/val/a": ONE})
    (tmp_path / "images/val/a.png").write_bytes(b"GIF89a")
    with pytest.raises(DetkitError, match=r"a\.png: is not a picture"):
        load_dataset(tmp_path)
