"""What detkit can build, from a table that `python tools/models_table.py` measures: detectors, backbones and configs.

Reading it needs no PyTorch, so that `detkit models` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from detkit.errors import DetkitError

TABLE = "models.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that has a name.

    about: its paper, or what a config is of. size: height and width of the pictures that `gflops` is of, billions of
    operations for one, a multiply-add counting two; none where they depend on the proposals. parameters: of a backbone
    with a classifier of 1000 classes. strides: of the maps that it has, or a detector reads. weights: where they come
    from, none where they are to be trained.
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
    """Print entries as a table for each kind."""
    for kind in dict.fromkeys(entry.kind for entry in entries):
        rows = [entry for entry in entries if entry.kind == kind]
        table = Table(title=f"{len(rows)} {kind}{'s' * (len(rows) != 1)}", title_justify="left", box=box.SIMPLE_HEAD)
        cells = [_cells(entry) for entry in rows]
        headings = ["name", "M parameters", "GFLOPs", "at", "strides", "weights"] if kind != "detector" else ["name"]
        for heading in [*headings, *(["what"] if kind != "timm" else [])]:
            # On a narrow terminal what is only told gives way to names and numbers.
            told = heading in ("weights", "what")
            side: Literal["left", "right"] = "right" if heading in headings[1:5] else "left"
            table.add_column(heading, justify=side, no_wrap=not told, overflow="fold")
        for row in cells:
            table.add_row(*row)
        console.print(table)


def _cells(entry: Entry) -> list[str]:
    if entry.kind == "detector":
        return [entry.name, entry.about]
    cells = [
        entry.name,
        f"{entry.parameters / 1e6:.2f}" if entry.parameters is not None else "–",
        f"{entry.gflops:.2f}" if entry.gflops is not None else "–",
        "×".join(map(str, entry.size)) if entry.size else "–",
        " ".join(map(str, entry.strides or "–")),
        entry.weights or "–",
    ]
    return (
        cells
        if entry.kind == "timm"
        else [*cells, entry.about.partition(": ")[0] if entry.kind == "backbone" else entry.about]
    )
