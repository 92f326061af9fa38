"""Strict YAML ⇄ typed models: an unknown key, a wrong type or a bad value is one sentence with the file and the key."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from detkit.errors import DetkitError, nearest


class Strict(BaseModel):
    """A part of a configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping):
            for key in tree:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}{nearest(str(key), cls.model_fields)}")
                kinds = _kinds(cls.model_fields[key].annotation)
                if isinstance(tree[key], bool) and not {bool, Any} & {*kinds}:  # pydantic makes 1 and 0 of them
                    expected = dict.fromkeys(_WORDS.get(kind, "a mapping of keys to values") for kind in kinds)
                    message = f"expected {' or '.join(expected)}, got {str(tree[key]).lower()}"
                    if str in kinds:
                        message += ", which YAML makes of yes, no, on and off, too; quote a text"
                    raise PydanticCustomError("nested", "{message}", {"key": key, "message": message})
        return tree


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a list", NoneType: "null",
}  # fmt: skip


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that a field may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin is Literal:
        return [type(value) for value in arguments]
    if origin in (Union, UnionType):
        return [kind for argument in arguments for kind in _kinds(argument)]
    return [origin or annotation]


T = TypeVar("T", bound=BaseModel)


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with detkit, by name."""
    root = Path(str(files("detkit.configs")))
    return {path.stem: path for path in sorted(root.glob("*/*.yaml"))}


def find_config(name: str) -> Path:
    """Return the file of a shipped config's name or of a path to a YAML file."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = shipped_configs()
    if name not in shipped:
        raise DetkitError(
            f"{name!r} is no shipped config, which `detkit train` lists, and no .yaml, checkpoint or .cfg"
            f"{nearest(name, shipped)}"
        )
    return shipped[name]


class _OneOfEachKey(yaml.SafeLoader):
    """YAML without a key that stands twice, of which the first would silently be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping after looking for keys that repeat."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen |= {key.value} if isinstance(key.value, str) else set()
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _OneOfEachKey)
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DetkitError(f"{path}: is not a text file, so it cannot be YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DetkitError(f"{path}{where}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:  # an impossible date, endless nesting
        raise DetkitError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise DetkitError(f"{path}: expected a mapping of keys to values at the top, got {type(tree).__name__}")
    return tree


def override(tree: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a configuration tree with `a.b=c` settings applied; values are read as YAML.

    A list is indexed by number (`detector.levels.0.depth=3`). Validating the tree tells whether a key exists.
    """
    result = copy.deepcopy(dict(tree))
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted:
            raise DetkitError(f"--set {setting}: expected key.subkey=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise DetkitError(f"--set {setting}: the value {text!r} is not valid YAML") from None
        *parents, last = dotted.split(".")
        node: Any = result
        for depth, key in enumerate(parents):
            if isinstance(node, list):
                node = node[_index(node, key, setting)]
            else:
                if node.get(key) is None:
                    node[key] = {}
                node = node[key]
            if not isinstance(node, dict | list):
                raise DetkitError(f"--set {setting}: {'.'.join(parents[: depth + 1])} is a value and has no keys")
        if isinstance(node, list):
            node[_index(node, last, setting)] = value
        else:
            node[last] = value
    return result


def _index(node: list[Any], key: str, setting: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise DetkitError(f"--set {setting}: expected an index below {len(node)} in place of {key!r}")
    return int(key)


def validate(model: type[T], tree: Mapping[str, Any], source: str) -> T:
    """Build a typed model from a tree; the first problem becomes one sentence that names `source` and the key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise DetkitError(f"{source}: {': '.join(filter(None, _first_problem(error, tree)))}") from None


def nested(model: type[T], tree: Any) -> T:
    """Validate inside a pydantic validator, so that the key of a problem in there follows the key of the field."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        key, message = _first_problem(error, tree)
        raise PydanticCustomError("nested", "{message}", {"key": key, "message": message}) from None


def _first_problem(error: ValidationError, tree: Any) -> tuple[str, str]:
    """The dotted key of pydantic's first problem with a tree, and what is wrong there."""
    problem, *others = error.errors()
    path = _keys(problem, tree)
    message = _message(problem)
    if problem["type"] == "nested":
        path += filter(None, [problem["ctx"]["key"]])
    elif problem["type"] == "missing":
        message = f"the key {path.pop()!r} is missing"
    else:
        # Of a value that fits none of several kinds, pydantic has a problem for each.
        same = [_message(other) for other in others if len(path) < len(other["loc"]) and _keys(other, tree) == path]
        message = " or ".join(dict.fromkeys([message, *same]))
        if isinstance(problem["input"], str | int | float | None):
            message += f", got {problem['input']!r}"
    return ".".join(path), message


def _message(problem: ErrorDetails) -> str:
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):  # they name classes of Python's
        return "expected a mapping of keys to values"
    message = problem["msg"].removeprefix("Value error, ")
    return message if problem["type"] == "nested" else message[:1].lower() + message[1:]


def _keys(problem: ErrorDetails, tree: Any) -> list[str]:
    """Return where a problem is, without what pydantic adds to tell the kinds of a union apart, which is no key."""
    keys = []
    for part in problem["loc"]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            if problem["type"] != "missing" or part != problem["loc"][-1]:
                continue
        keys.append(str(part))
    return keys
