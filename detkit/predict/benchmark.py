"""How fast a model is on this machine, where the time goes, and what the machine could do at most."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from detkit import __version__
from detkit.data.picture import MAX_PIXELS
from detkit.detectors.base import Detector
from detkit.errors import DetkitError
from detkit.inference import DTYPES
from detkit.model import Model, Prepared
from detkit.predict.predictor import detect
from detkit.predict.sources import Frame, Source, find_sources, read_still
from detkit.predict.writers import Writer

STAGES = ("read", "preprocess", "forward", "boxes", "select", "write")
SAMPLES = ("sample:astronaut", "sample:chelsea")
_FEWEST = 3  # rounds


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was measured to reach: operations a second of a matrix product, bytes a second of a copy.

    An addition and a multiplication are two operations; a copy reads each byte and writes it.
    """

    product: float
    copy: float


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of batches of one size.

    pictures_per_second: of whole files, one batch being read and prepared while another is computed, as `detect` does
    it. latencies: seconds of each batch, stage after stage, from its files to the files with its results. stages:
    seconds of each of `STAGES` in all these batches. operations, moved: of one forward of the plain network, counted:
    of products and convolutions, and the bytes that each of its operations reads and writes. memory: bytes at the
    peak, of the GPU or of the process; None where the system does not tell. detections: found in a picture.
    """

    batch: int
    pictures_per_second: float
    latencies: tuple[float, ...]
    stages: dict[str, float]
    operations: int
    moved: int
    memory: int | None
    detections: float

    def latency(self, percent: float) -> float:
        """Seconds below which so many percent of the batches stay."""
        return float(np.percentile(self.latencies, percent))

    @property
    def forward(self) -> float:
        """Seconds of one forward, the mean."""
        return self.stages["forward"] / len(self.latencies)

    def to_json(self, ceilings: Ceilings) -> dict[str, Any]:
        """Return what the table shows, with seconds, bytes and shares of 1 as they are."""
        whole = sum(self.stages.values())
        return {
            "batch": self.batch,
            "pictures_per_second": self.pictures_per_second,
            "batches": len(self.latencies),
            "latency_p50": self.latency(50),
            "latency_p95": self.latency(95),
            "shares": {stage: seconds / whole for stage, seconds in self.stages.items()},
            "forward": self.forward,
            "operations": self.operations,
            "bytes_moved": self.moved,
            "share_of_product": self.operations / self.forward / ceilings.product,
            "share_of_copy": self.moved / self.forward / ceilings.copy,
            "peak_memory": self.memory,
            "detections_per_picture": self.detections,
        }


def benchmark(
    model: Model,
    names: Sequence[str] = SAMPLES,
    *,
    batch_sizes: Sequence[int],
    seconds: float = 3,
    max_pixels: int = MAX_PIXELS,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Time a model on pictures, each size of a batch for about that many seconds and for three batches at least.

    names: pictures, folders and globs, which take turns until a batch is full. on_row: called with each row when it is
    there. The model's own selection is used, and annotated pictures are written to a folder that goes again. Raises
    DetkitError for a video, for what cannot be read and for a batch that the memory does not hold.
    """
    sources = find_sources(names)
    for source in sources:
        if source.is_video or source.name == "-":
            raise DetkitError(f"{source.name}: is no picture file; a benchmark reads pictures again and again")
    rows = []
    with TemporaryDirectory() as folder:
        for number, size in enumerate(batch_sizes):
            batch = list(islice(cycle(sources), size))
            with _fits(size, model):
                rows.append(_row(model, batch, seconds, max_pixels, Path(folder) / str(number)))
            on_row(rows[-1])
    return rows


def describe(model: Model) -> dict[str, Any]:
    """Return what numbers depend on: the model, its input, the device, threads of a CPU, versions."""
    on_gpu = model.device.type == "cuda"
    return {
        "model": model.name,
        "size": list(model.preprocess.size),
        "precision": model.precision,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else processor(),
        "threads": None if on_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "detkit": __version__,
    }


def processor() -> str:
    """Return what the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def measure_ceilings(model: Model, repeats: int = 5) -> Ceilings:
    """Measure what the model's device reaches in its precision: the best of some products and of some copies.

    In fp32 on a GPU the product rounds to TF32 where convolutions do, so that no forward reaches more than all of it.
    """
    on_gpu = model.device.type == "cuda"
    side, length = (8192, 1 << 28) if on_gpu else (1024, 1 << 24)
    a, b = torch.rand(2, side, side, device=model.device).to(DTYPES[model.precision])
    source = torch.ones(length, device=model.device)
    target = torch.zeros_like(source)

    def best(function: Callable[[], Any]) -> float:
        found = []
        for _ in range(1 + repeats):
            begin = _now(model.device)
            function()
            found.append(_now(model.device) - begin)
        return min(found[1:])

    with _products_rounded_as_convolutions(model.device):
        product = best(lambda: a @ b)
    return Ceilings(2 * side**3 / product, 2 * source.nbytes / best(lambda: target.copy_(source)))


@contextmanager
def _products_rounded_as_convolutions(device: torch.device) -> Iterator[None]:
    rule = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(rule)


@contextmanager
def _fits(size: int, model: Model) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        height, width = model.preprocess.size
        raise DetkitError(
            f"--batch {size}: the {model.device.type}'s memory does not hold so many pictures of {height} × {width}; "
            "ask for fewer, or for a smaller --size"
        ) from error


def _row(model: Model, sources: Sequence[Source], seconds: float, max_pixels: int, folder: Path) -> Row:
    readers = [partial(_read, source, max_pixels) for source in sources]
    prepared = model.prepare([read().picture for read in readers])
    operations, moved = _count(model, prepared)
    _forget_peak(model.device)
    latencies: list[float] = []
    stages = dict.fromkeys(STAGES, 0.0)
    detections = 0
    with Writer(("image",), folder / "staged", model.classes) as writer:
        _round(model, readers, writer)  # compiles, records, chooses algorithms
        end = time.monotonic() + seconds / 2
        while len(latencies) < _FEWEST or time.monotonic() < end:
            spent, found = _round(model, readers, writer)
            latencies.append(sum(spent.values()))
            stages = {stage: stages[stage] + spent[stage] for stage in STAGES}
            detections += found
    rounds = max(2, round(seconds / 2 / float(np.median(latencies))))
    names = [source.name for source in sources] * rounds
    begin = time.perf_counter()
    detect(model, names, batch_size=len(sources), max_pixels=max_pixels, out=folder / "detect")
    per_second = len(names) / (time.perf_counter() - begin)
    return Row(
        len(sources), per_second, tuple(latencies), stages, operations, moved, _peak(model.device),
        detections / len(latencies) / len(sources),
    )  # fmt: skip


def _round(model: Model, readers: Sequence[Callable[[], Frame]], writer: Writer) -> tuple[dict[str, float], int]:
    """Seconds of each stage of one batch, one after the other, and the number of detections."""
    times = [_now(model.device)]
    frames = [read() for read in readers]
    times.append(_now(model.device))
    prepared = model.prepare([frame.picture for frame in frames])
    times.append(_now(model.device))
    with _watched(model.detector, model.device) as inside:
        found = model.detect(prepared)
    times.append(_now(model.device))
    for frame, detections in zip(frames, found, strict=True):
        writer.write(frame, detections)
    times.append(_now(model.device))
    read, preprocess, whole, write = np.diff(times).tolist()
    forward, boxes = inside["forward"], inside["candidates"]
    parts = (read, preprocess, forward, boxes, whole - forward - boxes, write)
    return dict(zip(STAGES, parts, strict=True)), sum(map(len, found))


@contextmanager
def _watched(detector: Detector, device: torch.device) -> Iterator[dict[str, float]]:
    """Give the seconds spent inside of `forward` and `candidates`."""
    spent = {"forward": 0.0, "candidates": 0.0}
    own = {name: vars(detector)[name] for name in spent if name in vars(detector)}  # a compiled forward

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            begin = _now(device)
            result = function(*inputs)
            spent[name] += _now(device) - begin
            return result

        return run

    try:
        for name in spent:
            setattr(detector, name, watch(name, getattr(detector, name)))
        yield spent
    finally:
        for name in spent:
            delattr(detector, name)
        vars(detector).update(own)


def _now(device: torch.device) -> float:
    """The clock's time when the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _read(source: Source, max_pixels: int) -> Frame:
    frame = read_still(source, max_pixels)
    if not isinstance(frame, Frame):
        raise frame.error
    return frame


# ----------------------------------------------------------------------------------------------------------------------
# What a forward has to do


class _Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; views of a tensor are none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        return out


@torch.no_grad()
def _count(model: Model, prepared: Prepared) -> tuple[int, int]:
    """Operations of products and convolutions, and bytes read and written, of the network as it is written."""
    forward: Callable[..., Any] = type(model.detector).forward  # not what torch.compile made of it
    inputs = model.detector.inputs(prepared.arrived())
    lower = model.precision != "fp32"
    with (
        torch.autocast(model.device.type, DTYPES[model.precision], enabled=lower),
        FlopCounterMode(display=False) as counter,
        _Traffic() as traffic,
    ):
        forward(model.detector, *inputs)
    return counter.get_total_flops(), traffic.moved


# ----------------------------------------------------------------------------------------------------------------------
# Memory


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists() and os.access(clear, os.W_OK):
        clear.write_text("5")  # Linux: the peak begins at what is held now


def _peak(device: torch.device) -> int | None:
    """Bytes at the peak: that tensors have on the GPU, else that the process holds; None where neither is known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
