"""Proposals of a config reach the detector in training, evaluation and detection alike."""

import json
from pathlib import Path

import pytest
import torch

import detkit
from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError
from detkit.evaluate.run import evaluate_model
from detkit.predict.predictor import detect
from detkit.regions import GridConfig, Proposals, propose
from detkit.structures import Batch
from detkit.train.run import Job, train

CONFIG = """\
# Fast R-CNN on timm's smallest network, for tests.
detector:
  name: fast_rcnn
  backbone: {name: timm/test_resnet}
  head: {widths: [16], pooling: {size: 3, method: align}}
preprocess: {mode: letterbox, size: [96, 128]}
proposals: {method: grid, divisions: [1, 2, 3]}
augment: {jitter: 0, scale: [1, 1]}
train: {epochs: 1, batch_size: 4, workers: 0, ema: null, warmup: {epochs: 0}}
"""
DATA = "sample:shapes?pictures=8&size=96"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proposals")
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the cache is below
        trained = train(folder / "tiny.yaml", Job(DATA, device="cpu"), out=folder / "run")
        assert trained is not None
        assert trained.last["cls"] > 0
        assert len(list((folder / "runs" / "proposals").glob("*/*.npy"))) > 8
    return folder / "run" / "last.safetensors"


def test_a_model_proposes_for_itself_or_takes_what_it_is_given(checkpoint) -> None:
    model = detkit.load(checkpoint, device="cpu", settings=["selection.score=0"])
    assert model.proposals == GridConfig(divisions=(1, 2, 3))
    picture = load_dataset(DATA, "train").samples[0].read()
    grid = propose(picture, model.proposals)
    seen = []

    def spy(batch: Batch, selection: object) -> list[detkit.Detections]:
        seen.append(batch.proposals)
        return original(batch, selection)

    original = model.detector.detect
    model.detector.detect = spy
    found = model(picture)
    (_, placement) = model.preprocess([picture])
    torch.testing.assert_close(placement[0].to_picture(seen[0].boxes[0]), torch.from_numpy(grid.boxes))
    assert len(found) > 0
    few = Proposals(grid.boxes[:2], grid.scores[:2])
    model.predict([picture, picture], proposals=[grid, few])
    assert seen[1].count.tolist() == [len(grid), 2]
    none = model.predict([picture], proposals=[grid[:0]])
    assert len(none[0]) == 0


def test_evaluation_and_detection_see_the_proposals(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = detkit.load(checkpoint, device="cpu")
    data = load_dataset(DATA, "train")
    result = evaluate_model(model, data, batch_size=3)
    assert len(result.detections) > 0

    # A file has a line for each picture, found by its name.
    line = {"source": "sample:astronaut", "width": 512, "height": 512, "proposals": [{"box": [10, 20, 200, 300]}]}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line) + "\n")
    given = ["proposals={method: file, path: boxes.jsonl}", "selection.score=0.0"]
    model = detkit.load(checkpoint, device="cpu", settings=given)
    results = []
    detect(model, ["sample:astronaut"], results.append, save=())
    assert 0 < len(results[0].detections) <= len(model.classes)
    with pytest.raises(DetkitError, match="has no line for the picture sample:chelsea"):
        model("sample:chelsea")
