"""Imports point one way, and the command line loads nothing heavy before it must."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import detkit

PACKAGE = Path(detkit.__file__).parent
LAYERS = [
    {"errors"},
    {"structures", "config", "files", "models"},
    {"ops", "draw"},
    {"preprocess"},
    {"backbones", "necks", "regions"},
    {"weights"},
    {"detectors", "classify.classifier"},  # a detector may hold a classifier; what trains and loads one lies above
    {"data", "inference"},
    {"model"},
    {"classify"},
    {"evaluate", "predict", "train", "export"},
    {"anchors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part(path: Path) -> str:
    return layered(path.with_suffix("").parts)


def layered(names: Sequence[str]) -> str:
    """The entry of LAYERS for a module below detkit: its own where it has one, else its package's."""
    return own if (own := ".".join(names[:2])) in LEVEL else names[0]


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {layered(name.split(".")[1:]) for name in names if name.startswith("detkit.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path: Path) -> None:
    above = {name for name in imported_parts(path) if LEVEL[name] > LEVEL[part(path)]}
    assert not above, f"{path} imports from above: {above}"


def test_detkit_and_its_commands_import_nothing_heavy() -> None:
    code = "import sys, detkit, detkit.cli; print(sorted(set(sys.modules) & {'torch', 'numpy', 'cv2', 'timm', 'PIL'}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_public_names_are_what_they_say() -> None:
    assert set(detkit.__all__) == {
        "Batch", "Candidates", "Detections", "DetkitError", "Model", "Preprocess", "Selection", "Target", "load",
        "__version__",
    }  # fmt: skip
    for name in detkit.__all__:
        assert getattr(detkit, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = detkit.nothing
