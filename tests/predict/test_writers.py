import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.errors import DetkitError
from detkit.predict import writers as module
from detkit.predict.sources import Frame, Source
from detkit.predict.writers import Writer, json_line
from detkit.structures import Detections

CLASSES = ("cat", "a/b: c")
EVERYTHING = ("image", "json", "crops")


def detections(size: tuple[int, int] = (48, 64)) -> Detections:
    boxes = torch.tensor([[8.0, 8, 40, 40], [20.2, 10.2, 30.7, 20.7]])
    return Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 1]), size)


def frame(name: str = "dog.jpg", index: int | None = None, source: Source | None = None) -> Frame:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    return Frame(source or Source(name), picture, index)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_everything_of_a_picture(tmp_path: Path) -> None:
    with Writer(EVERYTHING, tmp_path / "out", CLASSES) as writer:
        writer.write(frame(), detections())
    assert files(tmp_path / "out") == ["crops/a_b_ c/dog-2.jpg", "crops/cat/dog-1.jpg", "detections.jsonl", "dog.jpg"]
    assert cv2.imread(str(tmp_path / "out/dog.jpg")).shape == (48, 64, 3)
    assert cv2.imread(str(tmp_path / "out/crops/cat/dog-1.jpg")).shape == (32, 32, 3)
    assert cv2.imread(str(tmp_path / "out/crops/a_b_ c/dog-2.jpg")).shape == (11, 11, 3)
    line = json.loads((tmp_path / "out/detections.jsonl").read_text())
    assert line["detections"][1]["label"] == "a/b: c"


def test_the_json_of_a_picture_and_of_a_frame() -> None:
    expected = {
        "source": "pics/dög.jpg",
        "width": 64,
        "height": 48,
        "detections": [
            {"box": [8, 8, 40, 40], "score": 0.9, "label": "cat", "label_id": 0},
            {"box": [20.2, 10.2, 30.7, 20.7], "score": 0.5, "label": "a/b: c", "label_id": 1},
        ],
    }
    line = json_line(frame("pics/dög.jpg"), detections(), CLASSES)
    assert "\n" not in line
    assert json.loads(line) == expected
    assert json.loads(json_line(frame("clip.mp4", 7), detections(), CLASSES))["frame"] == 7


def test_png_stays_png_and_is_lossless_outside_the_drawing(tmp_path: Path) -> None:
    with Writer(("image",), tmp_path, CLASSES) as writer:
        writer.write(frame("dog.PNG"), detections())
    result = cv2.imread(str(tmp_path / "dog.png"))[..., ::-1]
    assert (result[45:] == frame().picture[45:]).all()


def test_a_picture_too_long_for_jpeg_becomes_png(tmp_path: Path) -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (2, 70_000))
    with Writer(("image",), tmp_path, CLASSES) as writer:
        writer.write(Frame(Source("panorama.tif"), np.zeros((2, 70_000, 3), np.uint8)), none)
    assert files(tmp_path) == ["panorama.png"]


def test_sources_of_the_same_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    sources = ["a/dog.jpg", "b/dog.jpg", "c/Dog.png", "dog-2.jpg", "a/dog.jpg", "-", "sample:dog"]
    with Writer(("image", "crops"), tmp_path, CLASSES) as writer:
        for source in sources:
            writer.write(frame(source), detections())
    pictures = [name for name in files(tmp_path) if "/" not in name]
    assert len(pictures) == len(sources)
    assert {"dog.jpg", "dog-2.jpg", "Dog-3.png", "stdin.jpg"} <= set(pictures)
    assert len(files(tmp_path)) == 3 * len(sources)


@pytest.mark.parametrize("stem", ["d" * 250, "ä" * 125])
def test_the_longest_names_are_cut_where_numbers_would_not_fit(tmp_path: Path, stem: str) -> None:
    classes = ("c" * 300, "cat")
    sources = [Source(f"a/{stem}.png"), Source(f"b/{stem}.jpg"), Source(f"c/{stem}.avi", 10.0, 1)]
    with Writer(("image", "crops"), tmp_path, classes) as writer:
        for source in sources:
            writer.write(frame(source=source, index=0 if source.is_video else None), detections())
    assert {path.suffix for path in tmp_path.glob("d*" if "d" in stem else "ä*")} == {".png", ".jpg", ".mp4"}
    assert len(files(tmp_path)) == 3 + 2 * len(sources)
    assert all(set(path.stem.split("-")[0]) == set(stem[0]) for path in tmp_path.rglob("*.jpg"))


def test_without_out_every_run_gets_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with Writer(("image",), None, CLASSES) as writer:
            writer.write(frame(), detections())
    assert files(tmp_path) == ["runs/detect/1/dog.jpg", "runs/detect/2/dog.jpg"]
    assert writer.folder == Path("runs/detect/2")


def test_nothing_is_made_before_the_first_result_or_when_nothing_is_saved(tmp_path: Path) -> None:
    with Writer(EVERYTHING, tmp_path / "out", CLASSES) as writer:
        pass
    with Writer((), tmp_path / "out", CLASSES) as writer:
        writer.write(frame(), detections())
    assert writer.folder is None
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").touch()
    with pytest.raises(DetkitError, match="is not empty"):
        Writer(("image",), tmp_path, CLASSES)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DetkitError, match="--save images: expected some of image, json, crops; did you mean 'image'"):
        Writer(("images",), None, CLASSES)


def test_a_video_is_written_at_its_own_speed(tmp_path: Path) -> None:
    source = Source("clip.avi", fps=12.5, frames=5)
    with Writer(EVERYTHING, tmp_path, CLASSES) as writer:
        for index in range(5):
            writer.write(frame(index=index, source=source), detections())
    video = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    count = 0
    while video.read()[0]:
        count += 1
    assert count == 5
    assert "crops/cat/clip-000004-1.jpg" in files(tmp_path)
    assert len((tmp_path / "detections.jsonl").read_text().splitlines()) == 5


def test_two_videos_and_a_picture_between(tmp_path: Path) -> None:
    first, second = Source("a/clip.mp4", 10.0, 2), Source("b/clip.mp4", 10.0, 3)
    with Writer(("image",), tmp_path, CLASSES) as writer:
        for source, index in ((first, 0), (first, 1), (Source("x.jpg"), None), (second, 0), (second, 1), (second, 2)):
            writer.write(frame(index=index, source=source), detections())
    assert files(tmp_path) == ["clip-2.mp4", "clip.mp4", "x.jpg"]
    assert module._frames_in(tmp_path / "clip.mp4") == 2
    assert module._frames_in(tmp_path / "clip-2.mp4") == 3


def test_a_video_that_mp4_cannot_hold_becomes_motion_jpeg(tmp_path: Path) -> None:
    source = Source("thin.mp4", 10.0, 2)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (1, 1))
    with Writer(("image",), tmp_path, CLASSES) as writer:
        for index in range(2):
            writer.write(Frame(source, np.zeros((1, 1, 3), np.uint8), index), none)
    assert files(tmp_path) == ["thin.avi"]
    assert module._frames_in(tmp_path / "thin.avi") == 2


@pytest.mark.parametrize(
    ("error", "kept"),
    [(KeyboardInterrupt(), ["detections.jsonl", "done.jpg"]), (BrokenPipeError(), ["done.jpg"])],
)
def test_when_it_is_stopped_nothing_half_written_stays(tmp_path: Path, error: BaseException, kept: list[str]) -> None:
    def stop() -> None:
        with Writer(("image", "json"), tmp_path, CLASSES) as writer:
            writer.write(frame("done.jpg"), detections())
            writer.write(frame(index=0, source=Source("clip.mp4", 10.0, 2)), detections())
            assert any(name.startswith(".clip") for name in files(tmp_path))
            raise error

    with pytest.raises(type(error)):
        stop()
    assert files(tmp_path) == kept
    if "detections.jsonl" in kept:
        lines = (tmp_path / "detections.jsonl").read_text().splitlines()
        assert [json.loads(line)["source"] for line in lines] == ["done.jpg", "clip.mp4"]


@pytest.mark.parametrize("out", [Path("own/deep/out"), Path("own"), None])
def test_when_it_is_stopped_no_empty_folder_stays_but_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Path | None
) -> None:
    def stop() -> None:
        with Writer(("image",), out, CLASSES) as writer:
            writer.write(frame(index=0, source=Source("clip.mp4", 10.0, 2)), detections())
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(Path().rglob("*")) == [Path("own")]


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Let no file grow beyond 4 kB: the operating system itself refuses, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", ["image", "json", "crops"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, full_disk: Callable[[], None], kind: str
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    boxes = torch.tensor([[0.0, 0, 400, 400]]).expand(200, 4)
    many = Detections(boxes, torch.linspace(1, 0.5, 200), torch.zeros(200, dtype=torch.int64), (400, 400))

    def write() -> None:
        with Writer((kind,), tmp_path, CLASSES) as writer:
            full_disk()
            writer.write(Frame(Source("dog.png"), picture), many)

    with pytest.raises(DetkitError, match="cannot be written: File too large"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_a_video(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    source = Source("clip.mp4", 10.0, 20)
    rng = np.random.default_rng(0)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (200, 200))

    def write() -> None:
        with Writer(("image",), tmp_path, CLASSES) as writer:
            full_disk()
            for index in range(20):
                writer.write(Frame(source, rng.integers(0, 255, (200, 200, 3), np.uint8), index), none)

    with pytest.raises(DetkitError, match=r"clip.mp4: cannot be written whole; is the disk full\?"):
        write()
    assert files(tmp_path) == []
