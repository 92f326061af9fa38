from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detkit.errors import DetkitError
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.predict.predictor import Result, describe, detect
from detkit.predict.sources import Failure
from detkit.structures import Detections

RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


def run(model: Model, *names: str | Path, **options) -> tuple[list[Result | Failure], object]:
    results: list[Result | Failure] = []
    summary = detect(model, [str(name) for name in names], results.append, **({"save": ()} | options))
    return results, summary


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_results_belong_to_their_pictures_whatever_the_batch(
    model: Model, paint: Callable[..., Path], tmp_path: Path, batch_size: int
) -> None:
    colors = [RED, GREEN, BLUE, BLACK, GREEN]
    for number, color in enumerate(colors):
        paint(f"{number}.png", color, (40 + number, 60))
    results, summary = run(model, tmp_path, batch_size=batch_size)
    assert [result.detections.labels.tolist() for result in results] == [[0], [1], [2], [], [1]]
    assert [result.detections.size for result in results] == [(40 + number, 60) for number in range(5)]
    assert results[0].detections.boxes[0].tolist() == pytest.approx([15, 10, 45, 30], abs=1e-3)
    assert (summary.pictures, summary.failures, summary.folder) == (5, [], None)


def test_a_bad_picture_in_a_folder_is_counted_and_the_others_are_done(
    model: Model, paint: Callable[..., Path], tmp_path: Path
) -> None:
    paint("1.png")
    (tmp_path / "2.png").write_text("no picture")
    paint("3.png")
    results, summary = run(model, tmp_path, save=("image",), out=tmp_path / "out")
    assert [type(result) for result in results] == [Result, Failure, Result]
    assert summary.pictures == 2
    assert [Path(failure.source.name).name for failure in summary.failures] == ["2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "3.png"]


def test_the_only_picture_named_must_be_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(DetkitError, match=r"bad.png: is not a picture"):
        run(model, tmp_path / "bad.png", save=("image",), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _, summary = run(model, tmp_path)  # in a folder it is one of many
    assert len(summary.failures) == 1


@pytest.mark.parametrize("name", ["bad.png", "./bad.png", "deeper//../bad.png"])
def test_the_only_picture_may_be_spelled_as_one_likes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deeper").mkdir()
    Path("bad.png").write_text("no picture")
    with pytest.raises(DetkitError, match=r"bad.png: is not a picture"):
        run(model, name)
    for many in (".", "*.png"):  # a folder or glob may hold one today and more tomorrow
        assert len(run(model, many)[1].failures) == 1


def test_classes_take_no_places_from_each_other(model: Model, paint: Callable[..., Path]) -> None:
    path = paint("white.png", (255, 250, 245))
    one = Selection(max_detections=1)
    assert run(model, path, selection=one)[0][0].detections.labels.tolist() == [0]
    assert run(model, path, selection=one, classes=["blue"])[0][0].detections.labels.tolist() == [2]
    both = run(model, path, classes=["blue", "red"])[0][0].detections
    assert both.labels.tolist() == [0, 2]


def test_an_unknown_class_is_an_error_with_the_nearest(model: Model, paint: Callable[..., Path]) -> None:
    with pytest.raises(DetkitError, match="--classes gren: is no class of the model; did you mean 'green'"):
        run(model, paint("a.png"), classes=["gren"])


def test_the_models_selection_is_the_default(model: Model, paint: Callable[..., Path]) -> None:
    path = paint("dark.png", (100, 0, 0))
    assert len(run(model, path)[0][0].detections) == 1
    strict = replace(model, selection=Selection(score=0.5))
    assert len(run(strict, path)[0][0].detections) == 0
    assert len(run(strict, path, selection=Selection(score=0.3))[0][0].detections) == 1


def test_a_video_is_summed_up_and_written(model: Model, film: Callable[..., Path], tmp_path: Path) -> None:
    path = film("clip.mp4", [RED, RED, GREEN, BLACK])
    results, summary = run(model, path, save=("image", "json"), out=tmp_path / "out", batch_size=3)
    assert [result.frame.index for result in results] == [0, 1, 2, 3]
    (video,) = summary.videos
    assert (video.source.name, video.frames, video.size) == (str(path), 4, (48, 64))
    assert dict(video.seen) == {"red": 2, "green": 1}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["clip.mp4", "detections.jsonl"]


def test_a_video_named_twice_is_two_videos(model: Model, film: Callable[..., Path], paint: Callable[..., Path]) -> None:
    clip, still = film("clip.avi", [RED, GREEN, RED]), paint("still.png")
    _, summary = run(model, clip, still, clip, clip)
    assert [(video.frames, dict(video.seen)) for video in summary.videos] == [(3, {"red": 2, "green": 1})] * 3
    assert summary.pictures == 10


def test_when_the_caller_stops_nothing_half_written_stays(
    model: Model, film: Callable[..., Path], tmp_path: Path
) -> None:
    def stop(result: Result | Failure) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        detect(model, [str(film("clip.mp4", [RED] * 4))], stop, save=("image", "json"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extreme_pictures(model: Model, paint: Callable[..., Path], tmp_path: Path) -> None:
    results, _ = run(model, paint("dot.png", RED, (1, 1)), save=("image", "crops"), out=tmp_path / "out")
    assert results[0].detections.size == (1, 1)
    big = paint("big.png", RED, (200, 300))
    with pytest.raises(DetkitError, match="300 wide and 200 high"):
        run(model, big, max_pixels=59_999)
    assert len(run(model, big, max_pixels=60_000)[0][0].detections) == 1


def test_describe() -> None:
    labels = torch.tensor([1, 0, 1])
    detections = Detections(torch.zeros(3, 4), torch.tensor([0.9, 0.8, 0.7]), labels, (10, 10))
    assert describe(detections, ("cat", "dog")) == "2 dog, 1 cat"
    assert describe(detections[:0], ("cat", "dog")) == "no objects"
