import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.model import Model
from detkit.ops.nms import Selection, select
from detkit.predict.benchmark import (
    SAMPLES,
    STAGES,
    Ceilings,
    Row,
    _count,
    _products_rounded_as_convolutions,
    benchmark,
    measure_ceilings,
)
from detkit.predict.sources import read_still
from detkit.predict.writers import Writer
from detkit.structures import Batch


@pytest.fixture
def paused(model: Model, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each stage of the model waits."""
    pauses = {"read": 0.005, "preprocess": 0.01, "forward": 0.04, "boxes": 0.2, "select": 0.03, "write": 0.015}

    def wait(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            time.sleep(pauses[stage])
            return function(*inputs, **options)

        return run

    monkeypatch.setattr("detkit.predict.benchmark.read_still", wait("read", read_still))
    monkeypatch.setattr(Model, "prepare", wait("preprocess", Model.prepare))
    monkeypatch.setattr(type(model.detector), "forward", wait("forward", type(model.detector).forward))
    monkeypatch.setattr(type(model.detector), "decode", wait("boxes", type(model.detector).decode))
    monkeypatch.setattr("detkit.detectors.base.select", wait("select", select))
    monkeypatch.setattr(Writer, "write", wait("write", Writer.write))
    return pauses


def test_each_stage_is_told_apart(model: Model, paused: dict[str, float], paint: Callable[..., Path]) -> None:
    detector = model.detector
    before = dict(vars(detector))
    seen: list[Row] = []
    (row,) = benchmark(model, [str(paint("a.png"))], batch_sizes=[2], seconds=0, on_row=seen.append)
    assert seen == [row]
    assert len(row.latencies) == 3
    expected = {stage: pause * (2 if stage in ("read", "write") else 1) for stage, pause in paused.items()}
    for stage in STAGES:  # other processes may take time, too
        assert expected[stage] <= row.stages[stage] / 3 < expected[stage] + 0.15
    assert sum(row.latencies) == pytest.approx(sum(row.stages.values()))
    assert row.forward == pytest.approx(row.stages["forward"] / 3)
    assert row.detections == 1  # red
    assert set(vars(detector)) - set(before) <= {"canvas"}  # nothing of the watch stays


def test_several_sizes_and_what_a_row_says(model: Model) -> None:
    rows = benchmark(model, SAMPLES, batch_sizes=[1, 3], seconds=0)
    assert [row.batch for row in rows] == [1, 3]
    for row in rows:
        found = row.to_json(Ceilings(product=1e12, copy=1e9))
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert 0 < found["latency_p50"] <= found["latency_p95"] <= max(row.latencies)
        assert found["pictures_per_second"] > 0
        assert found["share_of_copy"] == pytest.approx(row.moved / row.forward / 1e9)
        assert found["share_of_product"] == row.operations == 0  # a mean is no product
        assert row.memory is None or row.memory > 50e6


class Product(nn.Module):
    """A product of [B, 8] and [8, 4] and a sum, whose operations and bytes are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).t() + 1

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.images,)


def test_operations_and_bytes_are_counted(model: Model) -> None:
    class Given:
        def arrived(self) -> Batch:
            return Batch(torch.ones(3, 8), torch.zeros(3, 2))

    network: Any = Product()
    counted = Model(network, model.preprocess, Selection(), (), "", torch.device("cpu"), "fp32")
    operations, moved = _count(counted, Given())  # type: ignore[arg-type]
    assert operations == 2 * 3 * 8 * 4
    assert moved == 4 * ((3 * 8 + 8 * 4 + 3 * 4) + (3 * 4 + 3 * 4))  # the view by t() is free


@pytest.mark.parametrize("rounded", [True, False])
def test_products_of_a_gpu_round_as_its_convolutions_do(rounded) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=rounded):
        with _products_rounded_as_convolutions(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == ("high" if rounded else "highest")
        with _products_rounded_as_convolutions(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_ceilings_are_measured(model: Model) -> None:
    ceilings = measure_ceilings(model, repeats=1)
    assert 1e8 < ceilings.product < 1e15
    assert 1e7 < ceilings.copy < 1e13


def test_only_a_full_memory_is_named_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), DetkitError),
        (MemoryError(), DetkitError),
        (RuntimeError("sizes differ"), RuntimeError),
    ):
        monkeypatch.setattr(Model, "prepare", Mock(side_effect=error))
        with pytest.raises(expected) as raised:
            benchmark(model, SAMPLES, batch_sizes=[2], seconds=0)
        assert ("--batch 2: the cpu's memory" in str(raised.value)) == (expected is DetkitError)


def test_what_cannot_be_timed_is_named(model: Model, film: Callable[..., Path], tmp_path: Path) -> None:
    for name in (str(film("clip.avi", [(255, 0, 0)])), "-"):
        with pytest.raises(DetkitError, match=f"{name}: is no picture file; a benchmark reads pictures again"):
            benchmark(model, [name], batch_sizes=[1])
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(DetkitError, match=r"bad\.png: is not a picture"):
        benchmark(model, [str(tmp_path / "bad.png")], batch_sizes=[1])
