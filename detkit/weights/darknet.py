"""Darknet's two files: the network's description (.cfg) and its numbers (.weights).

A .cfg is a list of sections of `key=value` lines; the first is [net], each other one is a layer. A .weights file is a
header (three 32-bit version numbers and the count of pictures seen in training) and then float32 numbers, little
endian, layer by layer in the order of the .cfg.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.files import aside, explained


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a .cfg.

    source: the file's name. number: 0 for [net], then counting; layer: the number that Darknet and `route` give it.
    options: key → (value, line); of a repeated key the first counts, as in Darknet. read: the keys asked for so far.
    """

    source: str
    number: int
    kind: str
    line: int
    options: dict[str, tuple[str, int]]
    read: set[str] = field(default_factory=set)

    @property
    def layer(self) -> int:
        """The number of the layer, which starts at 0 after [net]."""
        return self.number - 1

    def error(self, message: str, key: str | None = None) -> DetkitError:
        """Return the error that this section has, at the line of the key."""
        line = self.options[key][1] if key in self.options else self.line
        return DetkitError(f"{self.source}, line {line}: section {self.number} [{self.kind}]: {message}")

    def text(self, key: str, default: str) -> str:
        """Return an option's value, or the default where it is not given."""
        self.read.add(key)
        return self.options[key][0] if key in self.options else default

    def integer(self, key: str, default: int, low: int = 0) -> int:
        """Return a whole number that is not below `low`."""
        text = self.text(key, str(default))
        try:
            value = int(text)
        except ValueError:
            raise self.error(f"{key} must be a whole number, got {text!r}", key) from None
        if value < low:
            raise self.error(f"{key} must be at least {low}, got {value}", key)
        return value

    def number_of(self, key: str, default: float) -> float:
        """Return a finite number."""
        return self._finite(key, self.text(key, str(default)))

    def integers(self, key: str) -> list[int]:
        """Return a list of whole numbers separated by commas, which must be given."""
        try:
            return [int(text) for text in self._items(key)]
        except ValueError:
            raise self.error(f"{key} must be whole numbers, got {self.options[key][0]!r}", key) from None

    def numbers(self, key: str) -> list[float]:
        """Return a list of finite numbers separated by commas, which must be given."""
        return [self._finite(key, text) for text in self._items(key)]

    def _items(self, key: str) -> list[str]:
        if key not in self.options:
            raise self.error(f"the option {key} is missing")
        return self.text(key, "").removesuffix(",").split(",")

    def _finite(self, key: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(f"{key} must be a number, got {text!r}", key)
        return value


def read_cfg(path: Path) -> list[Section]:
    """Read a .cfg file."""
    return parse_cfg(read_text(path, "a Darknet .cfg"), str(path))


def parse_cfg(text: str, source: str) -> list[Section]:
    """Read the text of a .cfg; `source` is what errors call it."""
    sections: list[Section] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):  # a byte order mark
        line = "".join(line.split("#")[0].split(";")[0].split())  # Darknet ignores blanks within a line, too
        key, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(source, len(sections), line[1:-1], number, {}))
        elif line and (not sections or not (key and equals and value)):
            expected = "[section] or key=value" if sections else "[net] first"
            raise DetkitError(f"{source}, line {number}: expected {expected}, got {line[:40]!r}")
        elif line:
            sections[-1].options.setdefault(key, (value, number))
    if not sections or sections[0].kind not in ("net", "network"):
        found = f"[{sections[0].kind}]" if sections else "no section"
        raise DetkitError(f"{source}: is no Darknet .cfg: expected [net] as its first section, got {found}")
    return sections


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8; `what` it should be is named where it is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DetkitError(f"{path}: is no text in UTF-8, so it cannot be {what}")
    return text


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A .weights file: its header, and its numbers float32 [N], which stay on the disk until they are read."""

    path: Path
    major: int
    minor: int
    revision: int
    seen: int
    numbers: NDArray[np.float32]

    @property
    def header(self) -> bytes:
        """The first bytes of the file."""
        return darknet_header(self.major, self.minor, self.revision, self.seen)

    @property
    def transposed(self) -> bool:
        """Whether the weights of connected layers are [inputs, outputs]."""
        return _transposed(self.major, self.minor)


def read_weights(path: Path) -> WeightsFile:
    """Open a .weights file; files since version 0.2 count the pictures seen with 64 bits, older ones with 32."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
        size = path.stat().st_size
    except OSError as error:
        raise DetkitError(f"{path}: cannot be read: {error.strerror}") from None
    major, minor, revision = struct.unpack_from("<3i", head) if len(head) >= 12 else (-1, -1, -1)
    if not all(0 <= part < 10_000 for part in (major, minor, revision)):
        raise DetkitError(f"{path}: is no Darknet .weights file: it has {size} bytes and begins with {head[:12]!r}")
    start, form = (20, "<Q") if _wide(major, minor) else (16, "<I")
    if size <= start or (size - start) % 4:
        raise DetkitError(
            f"{path}: is cut off or no Darknet .weights file: {size} bytes are no header of {start} bytes and "
            f"numbers of 4 bytes each"
        )
    numbers = np.memmap(path, "<f4", "c", start)
    (seen,) = struct.unpack_from(form, head, 12)
    return WeightsFile(path, major, minor, revision, seen, numbers)


def darknet_header(major: int = 0, minor: int = 2, revision: int = 0, seen: int = 0) -> bytes:
    """Return the first bytes of a .weights file; the version is by default that of Darknet's own files since YOLOv3."""
    return struct.pack("<3i", major, minor, revision) + struct.pack("<Q" if _wide(major, minor) else "<I", seen)


def _wide(major: int, minor: int) -> bool:
    return major * 10 + minor >= 2 and major < 1000 and minor < 1000  # parser.c, load_weights_upto


def _transposed(major: int, minor: int) -> bool:
    return major > 1000 or minor > 1000  # parser.c, load_weights_upto


def darknet_tensors(layer: nn.Module, *, transposed: bool = False) -> list[Tensor]:
    """Return a layer's tensors in the order in which a .weights file holds them.

    layer: what has `weight` and `bias` (convolution, connected, local), or a Sequential that begins with such a one and
    its batch norm, if it has one. Biases come first, then scales, means and variances, then weights; a connected layer
    has its batch norm after its weights. transposed: the weights of a connected layer are given as [inputs, outputs].
    """
    core: Any = layer[0] if isinstance(layer, nn.Sequential) else layer
    norm: Any = layer[1] if isinstance(layer, nn.Sequential) else None
    weight = core.weight.T if transposed and isinstance(core, nn.Linear) else core.weight
    if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
        return [core.bias, weight]
    statistics: list[Tensor] = [norm.weight, norm.running_mean, norm.running_var]  # type: ignore[list-item]
    if isinstance(core, nn.Linear):
        return [norm.bias, weight, *statistics]
    return [norm.bias, *statistics, weight]


def first_layers(layers: Sequence[nn.Module], path: Path) -> Sequence[nn.Module]:
    """Return the first of the layers, given in the order of the .cfg, that a .weights file holds to its last number.

    Files of the first layers are what Darknet's `partial` writes, such as extraction.conv.weights, for training to
    start from. Of a file that ends elsewhere all layers are returned, to whose length `load_darknet_weights` objects.
    """
    found = len(read_weights(path).numbers)
    for i, layer in enumerate(layers):
        found -= sum(tensor.numel() for tensor in darknet_tensors(layer))
        if found <= 0:
            return layers[: i + 1] if found == 0 else layers
    return layers


def load_darknet_weights(layers: Iterable[nn.Module], path: Path, names: Iterable[str] | None = None) -> WeightsFile:
    """Fill layers, given in the order of the .cfg, from a .weights file, and return the file.

    names: what errors call the layers. Nothing is loaded unless the file holds as many numbers as the layers.
    """
    file = read_weights(path)
    layers = list(layers)
    names = list(names or (f"layer {i} of the {len(layers)} with weights" for i in range(1, len(layers) + 1)))
    tensors = [darknet_tensors(layer, transposed=file.transposed) for layer in layers]
    sizes = [sum(tensor.numel() for tensor in group) for group in tensors]
    wanted, found = sum(sizes), len(file.numbers)
    if found > wanted:
        raise DetkitError(
            f"{path}: is too long by {4 * (found - wanted)} bytes: the network wants {wanted} numbers up to "
            f"{names[-1]}, the file has {found}; is it the file of another .cfg?"
        )
    if found < wanted:
        ends = int(np.searchsorted(np.cumsum(sizes), found, side="right"))
        raise DetkitError(
            f"{path}: is too short by {4 * (wanted - found)} bytes: the network wants {wanted} numbers, the file has "
            f"{found} and ends within {names[ends]}; is it cut off or the file of another .cfg?"
        )
    position = 0
    with torch.no_grad():
        for tensor in (tensor for group in tensors for tensor in group):
            values = file.numbers[position : position + tensor.numel()].astype(np.float32, copy=False)
            tensor.copy_(torch.from_numpy(values).view(tensor.shape))
            position += tensor.numel()
    return file


def save_darknet_weights(path: Path, layers: Iterable[nn.Module], header: bytes) -> None:
    """Write layers, given in the order of the .cfg, as a .weights file that is whole or not there.

    What `load_darknet_weights` read of a file becomes, with that file's header, the same bytes again.
    """
    transposed = _transposed(*struct.unpack_from("<2i", header))
    with aside(path) as part, explained(path), part.open("wb") as file:
        file.write(header)
        for tensor in (tensor for layer in layers for tensor in darknet_tensors(layer, transposed=transposed)):
            file.write(tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
