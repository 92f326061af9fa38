import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.errors import DetkitError
from detkit.model import Model, ModelConfig, Prepared, build_detector, load
from detkit.predict.engine import detect_ahead
from detkit.structures import Batch, Candidates
from detkit.weights.checkpoint import Header, save_checkpoint

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def batches(*sizes: int) -> Iterator[tuple[int, list[np.ndarray], None]]:
    """Batches of red, green, blue, red, … pictures."""
    colors = [color for _ in range(sum(sizes)) for color in COLORS.values()]
    for number, size in enumerate(sizes):
        yield number, [np.full((40, 60, 3), colors.pop(0), np.uint8) for _ in range(size)], None


@pytest.mark.parametrize(("fill", "seen"), [(False, [2, 3, 1]), (True, [2, 3, 3])])
def test_each_batch_comes_with_its_own_detections(
    model: Model, monkeypatch: pytest.MonkeyPatch, fill: bool, seen: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(
        Model, "detect", lambda self, batch, selection: found.append(len(batch.batch)) or detect(self, batch, selection)
    )
    results = list(detect_ahead(replace(model, fill_batches=fill), batches(2, 3, 0, 1), model.selection))
    assert [number for number, _ in results] == [0, 1, 2, 3]
    labels = [[d.labels.tolist() for d in detections] for _, detections in results]
    assert labels == [[[0], [1]], [[2], [0], [1]], [], [[2]]]
    assert found == seen


detect = Model.detect


def test_the_next_batch_is_prepared_while_one_is_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    def two() -> Iterator[tuple[int, list[np.ndarray], None]]:
        for batch in batches(1, 1):
            if batch[0] == 1:
                second.set()
            yield batch

    def wait(self: Model, batch: Prepared, selection: Any) -> Any:
        assert second.wait(10)
        return detect(self, batch, selection)

    monkeypatch.setattr(Model, "detect", wait)
    assert len(list(detect_ahead(model, two(), model.selection))) == 2


def test_what_goes_wrong_in_the_thread_is_raised(model: Model) -> None:
    found = detect_ahead(model, iter([(0, [np.zeros((4, 4), np.uint8)], None)]), model.selection)
    with pytest.raises(DetkitError, match="a picture must be RGB pixels"):
        next(found)


def test_on_a_gpu_the_computing_stream_waits_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Stream:
        def wait_event(self, event: Any) -> None:
            calls.append(("wait", event))

    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, on: calls.append(("keep", on)))
    table = Candidates(torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([2]))
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.tensor([[8, 8]]), table)
    assert Prepared(batch, [], copied="copied").arrived() is batch  # type: ignore[arg-type]
    assert calls == [("wait", "copied")] + [("keep", stream)] * 6


def test_to_a_gpu_pictures_go_from_pinned_memory_on_a_stream_of_their_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Stream:
        def record_event(self) -> str:
            calls.append("recorded")
            return "copied"

    @contextmanager
    def stream_of(stream: Stream) -> Iterator[None]:
        calls.append("begins")
        yield
        calls.append("ends")

    monkeypatch.setattr("detkit.model._copy_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", stream_of)
    monkeypatch.setattr(Batch, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Batch, "to", lambda self, device: calls.append(f"to {device}") or self)
    prepared = replace(model, device=torch.device("cuda")).prepare([np.zeros((8, 8, 3), np.uint8)])
    assert prepared.copied == "copied"
    assert calls == ["begins", "pinned", "to cuda", "recorded", "ends"]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_finds_the_same(tmp_path: Path) -> None:
    """Its code is made once: the last batch is filled up."""
    level = {"stride": 32, "anchors": [[20, 20]], "width": 8, "depth": 0}
    tree = {
        "classes": ["cat", "dog"],
        "detector": {"name": "yolov3", "backbone": {"name": "darknet_tiny"}, "levels": [level]},
        "preprocess": {"size": [64, 96]},
        "selection": {"score": 0.1},
    }
    torch.manual_seed(0)
    state = build_detector(ModelConfig.model_validate(tree)).state_dict()
    save_checkpoint(tmp_path / "m.safetensors", state, Header(tree, ("cat", "dog"), {}))
    plain, compiled = (load(tmp_path / "m.safetensors", device="cpu", compiled=c) for c in (False, True))
    pictures = [np.random.default_rng(i).integers(0, 256, (60, 90, 3)).astype(np.uint8) for i in range(3)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = list(
            detect_ahead(compiled, iter([(0, pictures[:2], None), (1, pictures[2:], None)]), compiled.selection)
        )
    assert all(len(detections) for _, rows in found for detections in rows)
    for theirs, own in zip(plain.predict(pictures), [d for _, rows in found for d in rows], strict=True):
        torch.testing.assert_close(own.scores, theirs.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(own.boxes, theirs.boxes, atol=1e-2, rtol=0)
