"""Pictures listed in a CSV file with their labels."""

from pathlib import Path

import pytest
from PIL import Image

from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError

TABLE = """\
path,label,split
a.png,tabby cat,train
b.png,"dog, large",train
more/a.png,tabby cat,val
c.png,"a ""quoted"" eel",val
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("a", "b", "more/a", "c")):
        Image.new("RGB", (40 + number, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text(TABLE)
    return tmp_path / "table.csv"


def test_a_table_has_splits_of_the_same_classes(file: Path) -> None:
    train, val = load_dataset(file, "train"), load_dataset(file)
    assert (train.split, val.split) == ("train", "val")
    assert train.classes == val.classes == ('a "quoted" eel', "dog, large", "tabby cat")
    assert [(s.id, s.labels.tolist()) for s in train.samples] == [("a.png", [2]), ("b.png", [1])]
    assert [(s.id, s.labels.tolist()) for s in val.samples] == [("more/a.png", [2]), ("c.png", [0])]
    sample = val.samples[0]
    assert sample.somewhere
    assert sample.boxes.tolist() == [[0, 0, 42, 30]]
    assert sample.read().shape == (30, 42, 3)


def test_without_the_column_all_pictures_are_one_part(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbflabel,path\r\ncat,a.png\r\ndog,b.png\r\n")  # as Excel writes it
    data = load_dataset(file)
    assert (data.split, data.classes, [s.labels[0] for s in data.samples]) == (None, ("cat", "dog"), [0, 1])
    with pytest.raises(DetkitError, match=r"table\.csv: there is no split 'val' \(there are none\)"):
        load_dataset(file, "val")


def test_spaces_around_a_field_are_no_part_of_it(file: Path) -> None:
    file.write_text("path, label , split\na.png, cat,train\n b.png,cat , train\n")
    data = load_dataset(file, "train")
    assert (data.classes, [s.id for s in data.samples]) == (("cat",), ["a.png", "b.png"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected the header path,label or path,label,split, got ''"),
        ("file,label\na.png,cat\n", "line 1: expected the header path,label or path,label,split, got 'file,label'"),
        ("path,label\n", "lists no pictures"),
        ("path,label\na.png,cat\nb.png\n", "line 3: expected 2 fields (path,label)"),
        ("path,label\na.png,dog, large\n", "line 2: expected 2 fields (path,label); put one that holds a comma in"),
        ("path,label\na.png, \n", "line 2: label: is empty"),
        ("path,label\na.png,cat\n\na.png,dog\n", "line 4: path: a.png already stands in line 2"),
        ("path,label\na.png,cat\n./a.png,dog\n", "line 3: path: ./a.png already stands in line 2"),
        ("path,label\na.png,cat\nz.png,cat\n", "line 3: path: there is no picture"),
        ('path,label\na.png,"cat" x\n', "line 2: is not valid CSV"),
        (b"path,label\na.png,\xff\n", "is not UTF-8 text"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(file: Path, content: str | bytes, message: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DetkitError) as error:
        load_dataset(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
