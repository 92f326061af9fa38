"""Pictures with a label but no box, listed in a CSV file.

In UTF-8, with a header and a line for each picture; paths are relative to the file, and spaces around a field are no
part of it. Without the column `split` all pictures are one part::

    path,label,split
    pictures/0001.jpg,tabby cat,train
    pictures/0002.jpg,"dog, large",val

What a label means is told in detkit.data.folder.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detkit.data.folder import label_pictures
from detkit.data.sample import Dataset
from detkit.errors import DetkitError


class Row(NamedTuple):
    """A line of the file; split is None in all of them or in none."""

    line: int
    path: str
    label: str
    split: str | None


def read_rows(file: Path) -> list[Row]:
    """Read a CSV file; pictures are not looked at.

    Errors name file and line: a column that is missing or unknown, too few or too many fields, an empty field, a
    picture that is listed twice.
    """
    rows: list[Row] = []
    lines: dict[Path, int] = {}
    reader = None
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            if sorted(columns) not in (["label", "path"], ["label", "path", "split"]):
                raise DetkitError(
                    f"{file}, line 1: expected the header path,label or path,label,split, got {','.join(columns)!r}"
                )
            for fields in reader:
                rows.append(_row(f"{file}, line {reader.line_num}", reader.line_num, fields, columns))
                path = rows[-1].path
                line = lines.setdefault(Path(path), reader.line_num)
                if line != reader.line_num:
                    raise DetkitError(
                        f"{file}, line {reader.line_num}: path: {path} already stands in line {line}; a picture has "
                        "one label and one split"
                    )
    except OSError as error:
        raise DetkitError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DetkitError(f"{file}: is not UTF-8 text; save the table as CSV in UTF-8") from None
    except csv.Error as error:
        raise DetkitError(
            f"{file}, line {reader.reader.line_num if reader else 1}: is not valid CSV: {error}"
        ) from None
    if not rows:
        raise DetkitError(f"{file}: lists no pictures; expected a line path,label for each below the header")
    return rows


def read_table(file: Path, rows: Sequence[Row], split: str | None = None) -> Dataset:
    """Read the pictures of a split, or of rows without splits all; classes are the labels of all rows, sorted.

    Raises DetkitError with file and line when a picture does not exist, and with the picture when it cannot be read.
    """
    classes = tuple(sorted({row.label for row in rows}))
    number = {name: label for label, name in enumerate(classes)}
    chosen = [row for row in rows if row.split == split]
    paths = [file.parent / row.path for row in chosen]
    for row, path in zip(chosen, paths, strict=True):
        if not path.is_file():
            raise DetkitError(f"{file}, line {row.line}: path: there is no picture {path}; correct or remove the line")
    ids, labels = [row.path for row in chosen], [number[row.label] for row in chosen]
    return label_pictures(file, split, classes, ids, paths, labels)


def _row(place: str, line: int, fields: dict[str, str], columns: list[str]) -> Row:
    if None in fields or None in fields.values():  # where csv puts what is too much, and what it puts for the missing
        raise DetkitError(
            f"{place}: expected {len(columns)} fields ({','.join(columns)}); put one that holds a comma in quotes"
        )
    values = {name: value.strip() for name, value in fields.items()}
    for name, value in values.items():
        if not value:
            raise DetkitError(f"{place}: {name}: is empty; fill it in or remove the line")
    return Row(line, values["path"], values["label"], values.get("split"))
