"""Trees of class names as people write them: nested YAML, or Darknet's `.tree` with its `.names` (YOLO9000).

Here a tree is an ordered mapping of each name to its parent's name, None at the top; the order is that of the labels.

A `.tree` file has a line `id parent` for each label, the parent by its label or -1; the children of one parent stand
side by side. A YAML file or config nests::

    animal:
      dog: [terrier, poodle]
      cat:
    vehicle: [car, bus]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from detkit.config import read_yaml
from detkit.errors import DetkitError
from detkit.weights.darknet import read_text

Tree = dict[str, str | None]


def read_tree(path: Path, names_file: Path | None = None) -> Tree:
    """Read a `.tree` or a YAML file.

    The names of a `.tree` are the lines of `names_file`, by default of the `.names` beside it, or without such a file
    its ids; a name that stands there twice gets its id behind it, as in `crane (n01)`. Raises DetkitError with file and
    line.
    """
    if path.suffix != ".tree":
        tree = read_yaml(path)
        try:
            return flat_tree(tree)
        except ValueError as error:
            raise DetkitError(f"{path}: {error}") from None
    ids, parents = [], []
    lines = read_text(path, "a Darknet .tree").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2 or not words[1].removeprefix("-").isdigit():
            raise DetkitError(f"{path}, line {number}: expected an id and its parent's number, got {line[:40]!r}")
        ids.append(words[0])
        parents.append(int(words[1]))
        if not -1 <= parents[-1] < number - 1:
            raise DetkitError(
                f"{path}, line {number}: the parent {parents[-1]} of {words[0]} is no earlier label; expected -1 to "
                f"{number - 2}"
            )
    if not ids:
        raise DetkitError(f"{path}: holds no labels")
    runs = Counter(parent for parent, _ in groupby(parents))
    parted, times = runs.most_common(1)[0]
    if times > 1:
        raise DetkitError(f"{path}: the children of {parted} stand in {times} places; they must stand side by side")
    names = ids
    file = names_file or path.with_suffix(".names")
    if file.exists():
        names = [line.strip() for line in read_text(file, "a list of class names").rstrip().splitlines()]
        if len(names) != len(ids):
            raise DetkitError(f"{file}: holds {len(names)} names, but {path} has {len(ids)} labels")
    seen = Counter(names)
    names = [f"{name} ({id_})" if seen[name] > 1 else name for name, id_ in zip(names, ids, strict=True)]
    if len(set(names)) < len(names):
        raise DetkitError(f"{path}: the id {Counter(names).most_common(1)[0][0]} stands twice")
    return {name: names[parent] if parent >= 0 else None for name, parent in zip(names, parents, strict=True)}


def parent_labels(tree: Tree) -> list[int]:
    """Return the label of each label's parent, -1 at the top."""
    label_of = {name: label for label, name in enumerate(tree)}
    return [-1 if parent is None else label_of[parent] for parent in tree.values()]


def flat_tree(tree: Any) -> Tree:
    """Flatten nested mappings and lists, level by level; a mapping of names to their parents' names stays as it is.

    Raises ValueError with what is wrong.
    """
    if not isinstance(tree, Mapping | list) or not tree:
        raise ValueError(f"expected names with their children, got {tree!r}")
    if isinstance(tree, Mapping) and any(isinstance(parent, str) for parent in tree.values()):
        for name, parent in tree.items():
            if parent is not None and (not isinstance(parent, str) or parent not in tree):
                raise ValueError(f"the parent {parent!r} of {name!r} is none of the names")
        return dict(tree)
    flat: Tree = {}
    level: list[tuple[str | None, Any]] = [(None, tree)]
    while level:
        below: list[tuple[str | None, Any]] = []
        for parent, children in level:
            for name, grandchildren in _children(parent, children):
                if name in flat:
                    raise ValueError(f"the name {name!r} stands twice in the tree")
                flat[name] = parent
                below.append((name, grandchildren))
        level = below
    return flat


def _children(parent: str | None, children: Any) -> list[tuple[str, Any]]:
    """The names below a parent, each with what is below it in turn."""
    if children is None:
        return []
    if isinstance(children, Mapping):
        found = list(children.items())
    elif isinstance(children, list):
        found = [pair for item in children for pair in (item.items() if isinstance(item, Mapping) else [(item, None)])]
    else:
        raise ValueError(f"below {parent!r}: expected a list or a mapping of names, got {children!r}")
    for name, _ in found:
        if not isinstance(name, str) or not name:
            raise ValueError(f"below {parent or 'the top'!r}: expected a name (in quotes if need be), got {name!r}")
    return found
