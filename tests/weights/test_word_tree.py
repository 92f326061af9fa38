"""Trees of names from nested YAML and from Darknet's files."""

from pathlib import Path

import pytest
import yaml

from detkit.errors import DetkitError
from detkit.weights.word_tree import flat_tree, read_tree

NESTED = """\
animal:
  dog: [terrier, poodle]
  cat:
vehicle:
  - car: [taxi]
  - bus
thing:
"""
FLAT = {
    "animal": None,
    "vehicle": None,
    "thing": None,
    "dog": "animal",
    "cat": "animal",
    "car": "vehicle",
    "bus": "vehicle",
    "terrier": "dog",
    "poodle": "dog",
    "taxi": "car",
}
TREE = "n1 -1\nn2 -1\nn3 0\nn4 0\nn5 2\n"


def test_nested_names_are_laid_out_level_by_level(tmp_path: Path) -> None:
    flat = flat_tree(yaml.safe_load(NESTED))
    assert flat == FLAT
    assert list(flat) == list(FLAT)
    assert flat_tree(flat) == flat  # as a checkpoint holds it
    (tmp_path / "a.yaml").write_text(NESTED)
    assert read_tree(tmp_path / "a.yaml") == FLAT
    assert flat_tree(["cat", "dog"]) == {"cat": None, "dog": None}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "expected names with their children"),
        (3, "expected names with their children, got 3"),
        ({"a": ["b"], "c": ["b"]}, "'b' stands twice in the tree"),
        ({"a": ["b", "a"]}, "'a' stands twice in the tree"),
        ({"a": [True]}, "below 'a': expected a name .in quotes if need be., got True"),
        ({1: None}, "below 'the top': expected a name"),
        ({"a": {"b": 3}}, "below 'b': expected a list or a mapping of names, got 3"),
        ({"a": None, "b": "c"}, "the parent 'c' of 'b' is none of the names"),
        ({"a": None, "b": "a", "c": ["d"]}, "the parent .'d'. of 'c' is none of the names"),
    ],
)
def test_what_is_no_tree_of_names_is_named(tree: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        flat_tree(tree)
    if isinstance(tree, dict):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(DetkitError, match=r"a\.yaml: "):
            read_tree(tmp_path / "a.yaml")


def test_darknets_tree_keeps_its_order_and_takes_the_names_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "9k.tree"
    path.write_text(TREE)
    assert read_tree(path) == {"n1": None, "n2": None, "n3": "n1", "n4": "n1", "n5": "n3"}
    path.with_suffix(".names").write_text("animal\ncrane\ncrane\ncat\nkitty\n")
    assert read_tree(path) == {
        "animal": None, "crane (n2)": None, "crane (n3)": "animal", "cat": "animal", "kitty": "crane (n3)",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "names", "message"),
    [
        ("", None, r"9k\.tree: holds no labels"),
        ("n1 -1\nn2\n", None, r"9k\.tree, line 2: expected an id and its parent's number, got 'n2'"),
        ("n1 x\n", None, r"line 1: expected an id and its parent's number"),
        ("n1 -1\nn2 1\n", None, "line 2: the parent 1 of n2 is no earlier label; expected -1 to 0"),
        ("n1 -2\n", None, "line 1: the parent -2 of n1"),
        ("n1 -1\nn2 0\nn3 1\nn4 0\n", None, "the children of 0 stand in 2 places"),
        ("n1 -1\nn1 -1\n", None, r"the id n1 .* stands twice"),
        (TREE, "a\nb\n", r"9k\.names: holds 2 names, but .*9k\.tree has 5 labels"),
    ],
)
def test_darknets_files_are_checked(tmp_path: Path, tree: str, names: str | None, message: str) -> None:
    path = tmp_path / "9k.tree"
    path.write_text(tree)
    if names:
        path.with_suffix(".names").write_text(names)
    with pytest.raises(DetkitError, match=message):
        read_tree(path)


def test_a_missing_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=r"none\.tree: cannot be read"):
        read_tree(tmp_path / "none.tree")
