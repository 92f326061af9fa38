"""detkit checkpoints: one safetensors file that holds a whole model, and no code.

The tensors are the detector's state dict. The header's metadata has one key, `detkit`, with a JSON object:
  format   version of this layout, now 1
  config   the model's configuration, complete (see detkit.model.ModelConfig)
  classes  class names, in the order of the labels
  metrics  what was measured when the file was written, may be empty
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.files import write_atomically

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint says of its model beside the tensors."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    metrics: dict[str, float]


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a checkpoint aside, then rename it into place, so that the file is whole or not there."""
    described = {
        "format": FORMAT, "config": header.config, "classes": list(header.classes), "metrics": header.metrics
    }  # fmt: skip
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, {"detkit": json.dumps(described)}))


def read_header(path: Path) -> Header:
    """Read what a checkpoint says of its model; the tensors stay on disk."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("detkit")
    except FileNotFoundError:
        raise DetkitError(f"{path}: no such file") from None
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DetkitError(f"{path}: is no whole safetensors file: {error}") from None
    if text is None:
        raise DetkitError(
            f"{path}: is a safetensors file but no detkit checkpoint (its header lacks 'detkit'); "
            "name the config it belongs to with --model and pass the file with --weights"
        )
    try:
        described = json.loads(text)
        version = described["format"]
        if version != FORMAT:
            raise DetkitError(f"{path}: has checkpoint format {version}, this detkit reads format {FORMAT}")
        config, classes, metrics = described["config"], described["classes"], described["metrics"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DetkitError(f"{path}: the header's 'detkit' entry is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(classes, list) or not isinstance(metrics, dict):
        raise DetkitError(f"{path}: the header's 'detkit' entry is damaged: expected mappings and a list of classes")
    return Header(config, tuple(map(str, classes)), metrics)


def has_header(path: Path) -> bool:
    """Whether a file is a safetensors file that says of which model it is."""
    try:
        with safe_open(path, "pt") as file:
            return "detkit" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from a PyTorch file, of which nothing is ever executed."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise DetkitError(f"{path}: no such file") from None
        except (OSError, SafetensorError) as error:
            raise DetkitError(f"{path}: is no whole safetensors file: {error}") from None
    loaded = read_plain(path, "a PyTorch file of nothing but tensors; save the model's state_dict()")
    for key in ("state_dict", "model"):  # the two usual wrappers
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DetkitError(f"{path}: expected a state dict of names to tensors, got {type(loaded).__name__}")
    return loaded


def read_plain(path: Path, expected: str) -> Any:
    """Read a PyTorch file of tensors, numbers, text, lists and dictionaries; what it has beyond is never executed.

    Raises DetkitError when it is damaged or has more; expected: what it should be, for the message.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols, for whoever wrote the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DetkitError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise DetkitError(f"{path}: refused, and nothing in it was run: expected {expected}") from None
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # whatever a damaged file makes the reader stumble over
        raise DetkitError(f"{path}: is no PyTorch file, or is cut off") from None


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Load a state dict whose names and shapes must be the module's; the first difference is named."""
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    surplus = [name for name in tensors if name not in own]
    if missing or surplus:
        parts = [
            f"{len(names)} tensors {verb} (first: {names[0]})"
            for names, verb in ((missing, "are missing"), (surplus, "do not belong to it"))
            if names
        ]
        raise DetkitError(f"{source}: is not of this model: {' and '.join(parts)}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise DetkitError(
                f"{source}: is not of this model: {name} has shape {list(tensors[name].shape)}, "
                f"the model's is {list(tensor.shape)}"
            )
    module.load_state_dict(dict(tensors))
