"""What detkit can build, from a table that `python tools/models_table.py` measures: detectors, backbones and configs.

Reading it needs no PyTorch, so that `detkit models` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from detkit.errors import DetkitError

TABLE = "models.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that has a name.

    about: its paper, or what a config is of. size: height and width of the pictures that `gflops` is of, billions of
    operations for one, a multiply-add counting two; of a config with proposals, for as many as it lets through, or 2000
    where it sets no limit. parameters: of a backbone with a classifier of 1000 classes. strides: of the maps that it
    has, or a detector reads. weights: where they come from, none where they are to be trained.
    """

    kind: Literal["detector", "backbone", "config", "timm"]
    name: str
    about: str
    parameters: int | None = None
    gflops: float | None = None
    size: tuple[int, int] | None = None
    strides: tuple[int, ...] | None = None
    weights: str | None = None


def list_models(pattern: str = "") -> list[Entry]:
    """Return what has the pattern in its name, kind or paper, without regard to case; `timm/…` looks among timm's.

    Raises DetkitError where nothing has.
    """
    wanted = pattern.lower()
    if wanted.startswith("timm/"):
        found = _timms(wanted.removeprefix("timm/"))
    else:
        found = [entry for entry in read_table() if wanted in f"{entry.kind} {entry.name} {entry.about}".lower()]
    if not found:
        raise DetkitError(f"--filter {pattern}: no model has that in its name or paper; leave it out to see all")
    return found


def read_table() -> list[Entry]:
    """Return the table that comes with detkit."""
    rows = json.loads(files("detkit").joinpath(TABLE).read_text(encoding="utf-8"))
    return [Entry(**row | {key: tuple(row[key]) for key in ("size", "strides") if row[key]}) for row in rows]


def _timms(part: str) -> list[Entry]:
    """Every model of timm with this in its name; what it costs is known once it is built."""
    import timm

    entries = []
    for name in timm.list_models(f"*{part}*"):
        record = timm.get_pretrained_cfg(name)
        _, *size = record.input_size if record else (3,)
        weights = f"timm/{name}.{record.tag}" if record and record.has_weights and record.tag else None
        entries.append(Entry("timm", f"timm/{name}", "", size=(size[0], size[1]) if size else None, weights=weights))
    return entries


def print_models(entries: Sequence[Entry], console: Console) -> None:
    """Print entries kind by kind: what some are, then a line of numbers for each, and below it where weights are."""
    for kind in dict.fromkeys(entry.kind for entry in entries):
        rows = [entry for entry in entries if entry.kind == kind]
        known = [column for column in zip(_HEADINGS, *map(_cells, rows), strict=True) if set(column[1:]) != {_NONE}]
        widths = [max(map(len, column)) for column in known]
        heading, *lines = (
            "  ".join([f"  {name.ljust(widths[0])}", *map(str.rjust, cells, widths[1:])]).rstrip()
            for name, *cells in zip(*known, strict=True)
        )
        title = "of timm" if kind == "timm" else kind + "s" * (len(rows) != 1)
        console.print(Text(f"{len(rows)} {title}", "bold"), Text(heading, "bold"), sep="\n")
        for about, group in groupby(zip(rows, lines, strict=True), lambda pair: pair[0].about):
            if about:
                console.print(Text(about, "dim"))
            for entry, line in group:
                console.print(Text(line), no_wrap=True, overflow="ignore", crop=False)
                if entry.weights:
                    console.print(Padding(Text(entry.weights, "dim"), (0, 0, 0, 4)))
        console.print()


_NONE = "–"
_HEADINGS = "name", "M params", "GFLOPs", "at", "strides"


def _cells(entry: Entry) -> tuple[str, ...]:
    """What the line of an entry says below each heading."""
    return (
        entry.name,
        f"{entry.parameters / 1e6:.2f}" if entry.parameters is not None else _NONE,
        f"{entry.gflops:.{2 if entry.gflops < 100 else 0}f}" if entry.gflops is not None else _NONE,
        "×".join(map(str, entry.size)) if entry.size else _NONE,
        " ".join(map(str, entry.strides)) if entry.strides else _NONE,
    )
