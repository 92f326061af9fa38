import csv
import errno
import io
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

import detkit.train.run
from detkit.backbones.base import Backbone
from detkit.data.dataset import Dataset, Sample, Wanted, load_dataset
from detkit.detectors.yolov3 import YOLOv3
from detkit.errors import DetkitError
from detkit.evaluate.run import evaluate_model
from detkit.model import load, weights_file
from detkit.train.config import AnyTrainConfig, read_train_config
from detkit.train.module import Training
from detkit.train.run import Job, Trained, resume, train
from detkit.weights.checkpoint import read_header, read_tensors

PLAIN = ["train.frozen_batch_norm=true", "train.ema=null", "train.epochs=1"]


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


@pytest.fixture(scope="module")
def trained(config: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    result = train(config, Job(data), out=tmp_path_factory.mktemp("runs") / "run")
    assert result is not None
    return result


def test_the_run_folder(trained: Trained, config: Path) -> None:
    assert {path.name for path in trained.folder.iterdir()} == {
        "config.yaml", "metrics.csv", "curves.png", "tensorboard", "first_batches.png", "validation_predictions.png",
        "last.safetensors", "best.safetensors", "resume.pt",
    }  # fmt: skip
    for path in trained.folder.glob("*.png"):
        Image.open(path).verify()
    assert list((trained.folder / "tensorboard").glob("events.*"))
    table = rows(trained.folder)
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "3"), ("2", "6")]
    assert {"xy", "wh", "object", "no_object", "classes", "lr", "AP", "AP50", "ARl"} <= set(table[0])
    classes = list(load_dataset("sample:shapes", "train").classes)
    assert read_train_config(trained.folder / "config.yaml") == read_train_config(config, [f"classes={classes}"])


def test_the_score_is_what_evaluating_the_checkpoint_gives(trained: Trained, data: str) -> None:
    header = read_header(trained.folder / "last.safetensors")
    model = load(trained.folder / "last.safetensors", device="cpu")
    result = evaluate_model(model, load_dataset(data, "val")).result
    assert header.metrics["epoch"] == 2
    assert header.metrics["AP"] == pytest.approx(result.AP, abs=1e-3)
    assert header.metrics["AP"] == pytest.approx(float(rows(trained.folder)[1]["AP"]))


def test_what_resuming_needs_is_tensors_and_numbers(trained: Trained) -> None:
    state = torch.load(trained.folder / "resume.pt", weights_only=True)
    average = {
        name.removeprefix("average."): tensor
        for name, tensor in state["weights"].items()
        if name.startswith("average.")
    }
    saved = read_tensors(trained.folder / "last.safetensors")
    assert average.keys() == saved.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())
    assert any(not torch.equal(tensor, state["weights"][f"detector.{name}"]) for name, tensor in average.items())


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(config: Path, data: str, tmp_path: Path) -> None:
    train(config, Job(data), settings=["train.epochs=1", "train.evaluate_every=3"], out=tmp_path / "run")
    assert rows(tmp_path / "run")[0]["AP"]  # the last epoch is always evaluated
    with pytest.raises(DetkitError, match=r"run: is finished, all 1 epoch are done; .*--set train.epochs=MORE"):
        resume(tmp_path / "run")
    with pytest.raises(DetkitError, match=r"goes on with train.optimizer.name as it was"):
        resume(tmp_path / "run", settings=["train.epochs=2", "train.optimizer={name: adamw}"])
    result = resume(tmp_path / "run", settings=["train.epochs=2"])
    assert result is not None
    assert result.epochs == 2
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1", "2"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["epochs"] == 2


@pytest.mark.parametrize(
    ("optimizer", "change"),
    [
        ("{name: sgd}", "optimizer.weight_decay=0"),
        ("{name: sgd}", "backbone_lr_factor=0.5"),
        ("{name: adamw}", "layer_decay=0.5"),
    ],
)
def test_every_parameter_keeps_its_momentum_when_the_groups_change(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, change: str
) -> None:
    train(config, Job(data), settings=["train.epochs=1", f"train.optimizer={optimizer}"], out=tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["optimizer"]
    groups, configure = [], Training.configure_optimizers

    def look(self: Training) -> Optimizer:
        made = configure(self)
        groups.append(len(made.param_groups))
        for name, parameter in self.detector.named_parameters():
            assert made.state[parameter].keys() == saved[name].keys()
            assert all(torch.equal(value, saved[name][key]) for key, value in made.state[parameter].items())
        return made

    monkeypatch.setattr(Training, "configure_optimizers", look)
    resume(tmp_path / "run", settings=["train.epochs=2", f"train.{change}"])
    assert len(groups) == 1
    assert groups != [2]  # of weights and vectors, as before the change


def test_a_run_goes_on_in_fp16_that_began_without(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, Job(data), settings=["train.epochs=1"], out=tmp_path / "run")

    def scaled(options: AnyTrainConfig, job: Job) -> Trainer:  # the CPU's stand-in for a GPU
        fp32 = options.train.model_copy(update={"precision": "fp32"})
        trainer = make_trainer(options.model_copy(update={"train": fp32}), job)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 1024))
        return trainer

    make_trainer = detkit.train.run._trainer
    monkeypatch.setattr(detkit.train.run, "_trainer", scaled)
    for epochs, steps in ((2, 3), (3, 6)):
        resume(tmp_path / "run", settings=[f"train.epochs={epochs}", "train.precision=fp16"])
        scale = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["precision"]
        assert (scale["scale"], scale["_growth_tracker"]) == (1024, steps)


def test_accumulated_batches_make_the_step_of_one_large_batch(config: Path, data: str, tmp_path: Path) -> None:
    train(config, Job(data), settings=[*PLAIN, "train.batch_size=8"], out=tmp_path / "large")
    train(config, Job(data), settings=[*PLAIN, "train.batch_size=4", "train.accumulate=2"], out=tmp_path / "small")
    large, small = (read_tensors(tmp_path / name / "last.safetensors") for name in ("large", "small"))
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, rtol=1e-4, atol=1e-5)


def test_frozen_parts_stay_as_they_were(trained: Trained, config: Path, data: str, tmp_path: Path) -> None:
    start = trained.folder / "last.safetensors"
    settings = ["train.epochs=1", "train.freeze=all_but_head", "train.ema=null"]
    train(config, Job(data), settings=settings, weights=start, out=tmp_path / "run")
    before, after = read_tensors(start), read_tensors(tmp_path / "run" / "last.safetensors")
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"heads"}


def test_other_classes_start_anew_where_the_shapes_differ(
    trained: Trained, config: Path, data: str, tmp_path: Path
) -> None:
    settings = ["classes=[star, ring]", "train.epochs=1", "train.optimizer.lr=1e-9", "train.ema=null"]
    train(config, Job(data), settings=settings, weights=trained.folder / "last.safetensors", out=tmp_path / "run")
    header, old = read_header(tmp_path / "run" / "last.safetensors"), read_tensors(trained.folder / "last.safetensors")
    new = read_tensors(tmp_path / "run" / "last.safetensors")
    assert header.classes == ("star", "ring")
    other = {name for name in new if new[name].shape != old[name].shape}
    assert other == {f"heads.{level}.{part}" for level in (0, 1) for part in ("weight", "bias")}
    first = next(iter(new))
    torch.testing.assert_close(new[first], old[first], rtol=0, atol=1e-6)


def test_a_backbone_starts_where_another_ended(trained: Trained, config: Path, data: str, tmp_path: Path) -> None:
    source = trained.folder / "last.safetensors"
    settings = ["train.epochs=1", "train.freeze=backbone", f"detector.backbone.weights={source}"]
    result = train(config, Job(data), settings=[*settings, "detector.levels.0.width=32"], out=tmp_path / "run")
    assert result is not None
    before, after = read_tensors(source), read_tensors(tmp_path / "run/last.safetensors")
    shared = [name for name in after if name.startswith("backbone.")]
    assert len(shared) > 10
    assert all(torch.equal(before[name], after[name]) for name in shared)
    source.rename(tmp_path / "gone")
    try:  # whoever uses the new model needs the old one no more
        load(tmp_path / "run/last.safetensors", device="cpu")
    finally:
        (tmp_path / "gone").rename(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["backbone.weights=nowhere.safetensors"], r"nowhere\.safetensors: no such file"),
        (
            ["backbone.weights=yolov3_darknet53_coc"],
            "yolov3_darknet53_coc: no such file, .*; did you mean 'yolov3_darknet53_coco'",
        ),
        (["backbone.weights=x.safetensors", "backbone.pretrained=true"], "are two starts"),
    ],
)
def test_a_start_that_cannot_be_is_named(config: Path, data: str, tmp_path: Path, settings, message) -> None:
    with pytest.raises(DetkitError, match=message):
        train(config, Job(data), settings=[f"detector.{s}" for s in settings], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolov3_tiny_coco", "yolov3_tiny_coco: is a config that comes without weights; pass a file"),
        ("folder", "folder: is a folder; pass a file of weights, of a run .*folder/best.safetensors"),
        ("a.yaml", r"a.yaml: expected a file of weights \(.safetensors, .*\), got a .yaml"),
        ("a.png", r"a.png: expected a file of weights"),
        ("none.safetensors", "none.safetensors: no such file"),
    ],
)
def test_weights_that_are_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("a.yaml", "a.png"):
        (tmp_path / file).touch()
    with pytest.raises(DetkitError, match=message):
        weights_file(Path(name))


@pytest.mark.slow
def test_one_picture_is_enough(config: Path, tmp_path: Path) -> None:
    result = train(config, Job("sample:shapes?pictures=1&size=96"), settings=["train.epochs=2"], out=tmp_path / "run")
    assert result is not None
    assert result.last["step"] == 2
    assert load(tmp_path / "run/best.safetensors", device="cpu").predict([]) == []


@pytest.mark.slow
def test_a_class_that_is_never_seen_is_never_scored(config: Path, data: str, tmp_path: Path) -> None:
    known = [*load_dataset(data, "train").classes, "unicorn"]
    result = train(config, Job(data), settings=[f"classes={known}", "train.epochs=1"], out=tmp_path / "run")
    assert result is not None
    assert all(math.isfinite(value) for value in result.last.values() if value is not None)
    model = load(tmp_path / "run/last.safetensors", device="cpu")
    assert model.classes == tuple(known)
    assert result.last["AP"] == pytest.approx(evaluate_model(model, load_dataset(data, "val")).result.AP, abs=1e-3)


def test_training_ends_when_the_score_no_longer_rises(config: Path, data: str, tmp_path: Path) -> None:
    settings = ["train.epochs=9", "train.early_stop=1", "train.optimizer.lr=1e-12", "selection.score=0.5"]
    result = train(config, Job(data), settings=settings, out=tmp_path / "run")
    assert result is not None
    assert result.stopped_early
    assert result.epochs == 2
    with pytest.raises(DetkitError, match="has ended early, after 1 evaluations without a better score"):
        resume(tmp_path / "run")


def break_losses(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    calls, true_losses = itertools.count(), YOLOv3.losses

    def losses(self: YOLOv3, *args: Any) -> dict[str, Tensor]:
        terms = true_losses(self, *args)
        return terms | {"wh": terms["wh"] * float("nan")} if next(calls) == after else terms

    monkeypatch.setattr(YOLOv3, "losses", losses)


def test_a_loss_that_is_no_number_ends_the_training(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, after=4)
    with pytest.raises(DetkitError, match=r"'wh' is nan in epoch 2, step 5; .*run --set train.optimizer.lr=…` goes on"):
        train(config, Job(data), out=tmp_path / "run")
    assert read_header(tmp_path / "run" / "last.safetensors").metrics["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in read_tensors(tmp_path / "run" / "last.safetensors").values())
    result = resume(tmp_path / "run")
    assert result is not None
    assert result.epochs == 2


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (0, r"the GPU has no memory left; .* --resume \S+ --set train.batch_size=… --set train.accumulate=…`"),
        (1, r"a process that reads pictures was killed, .*; epoch 1 is kept: .* --set train.workers=…` goes on"),
    ],
)
def test_too_little_memory_ends_the_training_and_says_what_to_lower(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, message: str
) -> None:
    calls, true_losses = itertools.count(), YOLOv3.losses

    def losses(self: YOLOv3, *args: Any) -> dict[str, Tensor]:
        if next(calls) == 3:
            if not workers:
                raise torch.OutOfMemoryError
            for reader in multiprocessing.active_children():
                os.kill(reader.pid, signal.SIGKILL)
            time.sleep(60)  # until the news comes
        return true_losses(self, *args)

    monkeypatch.setattr(YOLOv3, "losses", losses)
    with pytest.raises(DetkitError, match=message):
        train(config, Job(data), settings=[f"train.workers={workers}"], out=tmp_path / "run")


def test_a_full_disk_ends_the_training_and_keeps_the_last_epoch(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full(file: int) -> None:
        writes_last = ".last." in str(Path(f"/proc/self/fd/{file}").readlink())
        if writes_last and (tmp_path / "run" / "best.safetensors").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DetkitError, match=r"last.safetensors: .*No space left.*resume"):
        train(config, Job(data), out=tmp_path / "run")
    assert read_header(tmp_path / "run" / "last.safetensors").metrics["epoch"] == 1
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["epoch"] == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_what_is_off_is_said_before_anything_is_made(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    for settings, job, message in (
        (["classes=[cat, dog]"], Job(data), "none of its classes .*circle"),
        ([], Job(data, split="trian"), "there is no split 'trian'; did you mean 'train'"),
        ([], Job(data, device="tpu"), "--device tpu: expected auto, cpu or cuda"),
        ([], Job(data, device="cpu", devices=3), "train.batch_size: 8 pictures cannot be shared evenly by 3 processes"),
        (["train.precision=fp16"], Job(data, device="cpu"), "fp16 needs a GPU"),
        (["train.freeze=99"], Job(data), "train.freeze: .* stages to freeze, got 99"),
        (
            ["train.teacher.model=bad.safetensors"],
            Job(data),
            "train.teacher.model: bad.safetensors: is no whole safetensors file",
        ),
    ):
        for out in (tmp_path / "run", None):
            with pytest.raises(DetkitError, match=message):
                train(config, job, settings=settings, out=out)
    monkeypatch.setattr(Backbone, "stages_from_picture", lambda self: [])
    with pytest.raises(DetkitError, match=r"train.layer_decay: .* no stages"):
        train(config, Job(data), settings=["train.layer_decay=0.5"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
    with pytest.raises(DetkitError, match="is not empty"):
        train(config, Job(data), out=config.parent)
    with pytest.raises(DetkitError, match="no folder of a training run"):
        resume(tmp_path)
    for step in ("1_rpn", "2_head"):
        (tmp_path / "run" / step).mkdir(parents=True)
        (tmp_path / "run" / step / "resume.pt").touch()
    with pytest.raises(DetkitError, match=r"steps of an alternating training, .*`--resume \S+/run/2_head` ends"):
        resume(tmp_path / "run")
    with pytest.raises(DetkitError, match=r"2_head/resume.pt: .* name its folder: --resume \S+/2_head$"):
        resume(tmp_path / "run/2_head/resume.pt")


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, damage: str) -> None:
    """In step `at` ruin what is learned, while the loss stays finite."""
    calls, true_losses = itertools.count(), YOLOv3.losses

    def losses(self: YOLOv3, *args: Any) -> dict[str, Tensor]:
        now = next(calls) == at
        if now and damage == "statistic":
            next(m for m in self.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(math.inf)
        terms = true_losses(self, *args)
        if now and damage == "gradient":
            terms["wh"] = terms["wh"] + 0 * (0 * self.heads[0].weight.sum()).sqrt()  # 0, of slope 0 · ∞
        return terms

    monkeypatch.setattr(YOLOv3, "losses", losses)


@pytest.mark.parametrize(
    ("at", "damage", "message"),
    [
        (5, "gradient", r"step 6 has left detector\.\S+ not finite .* epoch 2; lower .*; epoch 1 is kept: .*--resume"),
        (3, "statistic", r"step 6 has left detector\.\S+running_var not finite .* epoch 2; .*; epoch 1 is kept"),
        (2, "gradient", r"step 3 has left .* epoch 1; .*; the start of the run is kept: .*--resume"),
    ],
)
def test_weights_that_are_no_numbers_are_never_kept(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, damage: str, message: str
) -> None:
    spoil(monkeypatch, at, damage)
    folder = tmp_path / "run"
    with pytest.raises(DetkitError, match=message):
        train(config, Job(data), settings=["train.evaluate_every=1"], out=folder)
    state = torch.load(folder / "resume.pt", weights_only=True)
    assert state["epoch"] == (at > 2)
    kept = [state["weights"], *map(read_tensors, folder.glob("*.safetensors"))]
    assert len(kept) == 1 + 2 * (at > 2)
    assert all(tensor.isfinite().all() for tensors in kept for tensor in tensors.values())
    assert len(rows(folder)) == 1 if at > 2 else not (folder / "metrics.csv").exists()


def rewrite(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "resume.pt").write_bytes(b""), r"resume.pt: is no PyTorch file, or is cut off"),
        (lambda run: cut(run / "resume.pt"), r"resume.pt: is no PyTorch file, or is cut off"),
        (lambda run: torch.save([1], run / "resume.pt"), r"resume.pt: expected the state of a run, .* got format None"),
        (lambda run: torch.save({"a": 1}, run / "resume.pt"), r"resume.pt: expected the state of a run"),
        (lambda run: rewrite(run / "resume.pt", format=2), r"of format 3, got format 2, of an older detkit"),
        (lambda run: rewrite(run / "resume.pt", weights=None), r"is no whole state of a run: weights is off"),
        (lambda run: rewrite(run / "resume.pt", job={}), r"resume.pt: is no whole state of a run: .*job"),
        (lambda run: rewrite(run / "resume.pt", weights={"a": torch.ones(1)}), r"resume.pt: is not of this model"),
        (lambda run: torch.save(Path("x"), run / "resume.pt"), r"refused, and nothing in it was run: expected what"),
        (lambda run: edit(run, "- star\n", ""), r"goes on with the model as it was, in config.yaml, too"),
        (lambda run: edit(run, "name: sgd", "name: adamw\n    betas: [0.9, 0.99]"), r"config.yaml: train.optimizer"),
        (lambda run: edit(run, "ema: 0.9", "ema: null"), r"goes on with train.ema \(on or off\) as it was"),
        (lambda run: (run / "config.yaml").unlink(), r"config.yaml: cannot be read: No such file"),
        (lambda run: (run / "resume.pt").unlink(), r"is no folder of a training run"),
        (lambda run: (shutil.rmtree(run), run.touch()), r"is no folder of a training run"),
        (lambda run: (shutil.rmtree(run)), r"is no folder of a training run"),
    ],
)  # fmt: skip
def test_a_folder_that_is_off_is_named(
    trained: Trained, tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    break_it(run)
    with pytest.raises(DetkitError, match=message) as told:
        resume(run, settings=["train.epochs=3"])
    assert "\n" not in str(told.value)
    assert "weights_only" not in str(told.value)


def test_what_a_killed_run_was_writing_goes_when_it_goes_on(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    ours = [".last.0a1b2c3d.safetensors", ".validation_predictio.00000000.png", ".resume.ffffffff.pt"]
    others = [".last.0a1b2c3.safetensors", ".mine.0a1b2c3d.png", ".last.0a1b2c3d.pt", ".last.0A1B2C3D.safetensors"]
    for name in ours + others:
        (run / name).touch()
    resume(run, settings=["train.epochs=3"])
    assert sorted(path.name for path in run.glob(".*")) == sorted(others)


def test_without_objects_there_is_no_score_and_none_counts(
    config: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: str, split: str | Wanted | None) -> Dataset:
        dataset = load_dataset(source, split)
        return dataset if split is Wanted.LEARNED else replace(dataset, samples=[*map(bare, dataset.samples)])

    def bare(sample: Sample) -> Sample:
        return replace(
            sample, boxes=sample.boxes[:0], labels=sample.labels[:0], crowd=sample.crowd[:0],
            difficult=sample.difficult[:0],
        )  # fmt: skip

    monkeypatch.setattr("detkit.train.run.load_dataset", read)
    settings = ["train.epochs=3", "train.early_stop=1", "train.evaluate_every=1"]
    told = io.StringIO()
    run = train(config, Job(data), settings=settings, out=tmp_path / "run", console=Console(file=told, width=500))
    assert run is not None
    assert (run.epochs, run.best, run.stopped_early) == (3, None, False)
    assert told.getvalue().count("val: no object of the classes to learn, so there will be no score") == 1
    assert told.getvalue().count("AP none  AP50 none") == 3
    assert "best" not in told.getvalue().split("epoch 1/3")[1]
    assert (tmp_path / "run/last.safetensors").exists()
    assert not (tmp_path / "run/best.safetensors").exists()


def test_milestones_stay_where_they_are_when_a_run_goes_on_with_other_batches(
    config: Path, data: str, tmp_path: Path
) -> None:
    step = "train.schedule={name: step, milestones: [2]}"
    train(config, Job(data), settings=[step, "train.epochs=1", "train.batch_size=4"], out=tmp_path / "run")
    result = resume(tmp_path / "run", settings=["train.epochs=3", "train.batch_size=4", "train.accumulate=3"])
    assert result is not None
    assert [row["step"] for row in rows(tmp_path / "run")] == ["6", "8", "10"]
    assert [float(row["lr"]) for row in rows(tmp_path / "run")] == pytest.approx([0.01, 0.01, 0.001])
