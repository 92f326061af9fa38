import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cfg(shared: Path) -> Path:
    return shared / "weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg"


@pytest.fixture
def dog(shared: Path) -> Path:
    return shared / "sample_images/darknet/dog.jpg"


@pytest.fixture
def run(cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit detect` in an empty folder, with the small model unless told otherwise: code, stdout, stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def detkit(*arguments: str | Path, model: Path | None = cfg) -> tuple[int, str, str]:
        chosen = ["--model", str(model), "--device", "cpu"] if model else []
        monkeypatch.setattr(sys, "argv", ["detkit", "detect", *chosen, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


def one_sentence(code: int, out: str, err: str) -> str:
    """Check that it failed as a mistake of the user's does, and return what it said."""
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def line_for(out: str) -> dict:
    (line,) = out.splitlines()
    return json.loads(line)


def test_dog_bicycle_and_car(run: Run, dog: Path) -> None:
    code, out, _ = run(dog)
    assert code == 0
    summary, saved = out.splitlines()
    assert summary.startswith(f"{dog} 768×576: ")
    for name in ("dog", "bicycle", "car"):
        assert re.search(rf"\b\d {name}\b", summary)
    assert saved == f"saved to {Path('runs/detect/1')}"
    annotated = cv2.imread("runs/detect/1/dog.jpg")
    assert annotated.shape == (576, 768, 3)
    assert np.abs(annotated.astype(int) - cv2.imread(str(dog)).astype(int)).mean() > 1, "something is drawn"
    assert run(dog)[1].endswith(f"saved to {Path('runs/detect/2')}\n")


def test_json_has_one_line_and_nothing_else_is_printed_or_saved(run: Run, dog: Path) -> None:
    code, out, err = run(dog, "--json")
    assert (code, err) == (0, "")
    line = line_for(out)
    assert (line["source"], line["width"], line["height"]) == (str(dog), 768, 576)
    best = line["detections"][0]
    assert (best["label"], best["label_id"]) == ("dog", 16)
    assert best["box"] == pytest.approx([115, 190, 406, 508], abs=3)
    scores = [found["score"] for found in line["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert list(Path().iterdir()) == []


def test_json_saves_when_told_where_or_what(run: Run, dog: Path) -> None:
    _, out, err = run(dog, "--json", "--out", "here")
    assert line_for(out)["detections"]
    assert err == "saved to here\n"
    assert [path.name for path in Path("here").iterdir()] == ["dog.jpg"]
    _, out, _ = run(dog, "--json", "--save", "json,crops")
    assert Path("runs/detect/1/detections.jsonl").read_text() == out
    assert Path("runs/detect/1/crops/dog/dog-1.jpg").is_file()
    assert not Path("runs/detect/1/dog.jpg").exists()


def test_options_reach_the_model(run: Run, dog: Path) -> None:
    def found(*options: str) -> list[dict]:
        return line_for(run(dog, "--json", *options)[1])["detections"]

    default = found()
    assert found("--score", "0.5") == [one for one in default if one["score"] > 0.5]
    assert found("--max-detections", "2") == default[:2]
    assert found("--classes", "car, bicycle") == [one for one in default if one["label"] in ("car", "bicycle")]
    assert found("--classes", "car", "--max-detections", "1") == [one for one in default if one["label"] == "car"][:1]
    assert len(found("--iou", "0.99", "--score", "0.1")) > len(found("--score", "0.1"))
    assert len(found("--agnostic")) < len(default), "dog and cat are one animal"
    assert found("--resize", "stretch") != found("--resize", "letterbox")
    assert found("--precision", "bf16")[0]["label"] in ("dog", "bicycle", "car")


def test_a_bad_picture_among_others(run: Run, dog: Path) -> None:
    Path("pics").mkdir()
    content = dog.read_bytes()
    Path("pics/1.jpg").write_bytes(content)
    Path("pics/2.jpg").write_bytes(content[: len(content) // 2])
    Path("pics/3.jpg").write_bytes(b"")
    Path("pics/4.jpg").write_text("text")
    Path("pics/5.jpg").write_bytes(content)
    Path("pics/notes.txt").write_text("text")
    code, out, err = run("pics", "--json")
    assert code == 1
    assert [Path(json.loads(line)["source"]).name for line in out.splitlines()] == ["1.jpg", "5.jpg"]
    warning, truncated, empty, text, count = err.splitlines()
    assert warning == "warning: pics: 1 left out, being neither picture nor video: notes.txt"
    assert truncated.startswith("error: pics/2.jpg: ")
    assert empty.startswith("error: pics/3.jpg: ")
    assert text.startswith("error: pics/4.jpg: ")
    assert count == "3 of 5 sources could not be read"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "is empty"),
        (b"text", "is not a picture"),
        (b"half", "truncated"),
    ],
)
def test_one_bad_picture(run: Run, dog: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        Path("bad.jpg").write_bytes(dog.read_bytes()[:100_000] if content == b"half" else content)
    for spelled in ("bad.jpg", "./bad.jpg"):
        err = one_sentence(*run(spelled))
        assert "bad.jpg: " in err
        assert message in err
    assert not Path("runs").exists()


def test_several_of_which_none_can_be_read(run: Run) -> None:
    Path("text.jpg").write_text("text")
    Path("empty.jpg").write_bytes(b"")
    code, out, err = run("text.jpg", "empty.jpg")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "2 of 2 sources could not be read"


def test_standard_input_that_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in one_sentence(*run("-"))


def test_a_dot_and_a_wall(run: Run) -> None:
    cv2.imwrite("dot.png", np.zeros((1, 1, 3), np.uint8))
    code, out, _ = run("dot.png", "--json")
    assert code == 0
    assert line_for(out)["width"] == 1
    cv2.imwrite("wall.png", np.zeros((20_000, 20_000), np.uint8))
    err = one_sentence(*run("wall.png"))
    assert "20000 wide and 20000 high" in err
    assert "--max-pixels" in err
    cv2.imwrite("small.png", np.zeros((20, 20), np.uint8))
    one_sentence(*run("small.png", "--max-pixels", "399"))
    assert run("small.png", "--max-pixels", "400")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{dog} --classes dgo", "did you mean 'dog'"),
        ("{dog} --save imges", "did you mean 'image'"),
        ("{dog} --device cuda:99", "--device cuda:99"),
        ("nothing/*.jpg", "matches no file"),
        (".", "holds no picture or video"),
        ("{dog} --out used", "used: is not empty"),
    ],
)
def test_mistakes(run: Run, dog: Path, arguments: str, message: str) -> None:
    if "used" in arguments:
        Path("used").mkdir()
        Path("used/old.txt").touch()
    assert message in one_sentence(*run(*shlex.split(arguments.format(dog=dog))))
    assert not Path("runs").exists()


def test_without_a_model_the_one_that_comes_with_detkit_sees(run: Run) -> None:
    code, out, _ = run("sample:astronaut", "--json", model=None)
    assert code == 0
    best = line_for(out)["detections"][0]
    assert best["label"] == "person"
    x1, y1, x2, y2 = best["box"]
    assert x1 < 224 < x2  # the middle of her face
    assert y1 < 120 < y2
    assert (x2 - x1) * (y2 - y1) > 512 * 512 / 6


def test_weights_without_a_model_are_of_none(run: Run) -> None:
    assert "net.weights: name the config" in one_sentence(
        *run("sample:astronaut", "--weights", "net.weights", model=None)
    )


def test_an_unknown_model(run: Run, dog: Path) -> None:
    one_sentence(*run(dog, "--model", "yolov3_darknet53_cocoo", model=None))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that nobody may write to")
def test_no_permission(run: Run, dog: Path) -> None:
    code, _, err = run(dog, "--out", "/sys/detkit-results")
    assert code == 2
    assert err.startswith("error: /sys/detkit-results: cannot be written")


def test_the_cap_on_candidates_is_said_in_plain_words(run: Run, dog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.ops.nms import Selection

    monkeypatch.setattr(Selection, "cap", property(lambda self: 2))
    _, out, err = run(dog, "--json")
    assert len(line_for(out)["detections"]) <= 2
    (line,) = err.splitlines()
    assert line.startswith("warning: ")
    assert "only the best 2 enter" in line
    assert warnings.showwarning.__module__ == "warnings" or "pytest" in repr(warnings.showwarning)


def test_a_video(run: Run, dog: Path) -> None:
    picture = cv2.resize(cv2.imread(str(dog)), (384, 288))
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5, (384, 288))
    for _ in range(3):
        writer.write(picture)
    writer.release()
    _, out, _ = run("clip.avi")
    assert re.match(r"clip.avi 384×288, 3 frames: .*dog in 3", out)
    assert Path("runs/detect/1/clip.mp4").stat().st_size > 0
    _, out, _ = run("clip.avi", "clip.avi")
    assert re.findall(r"^clip.avi 384×288, (\d) frames", out, re.MULTILINE) == ["3", "3"]
    _, out, _ = run("clip.avi", "--json")
    assert [json.loads(line)["frame"] for line in out.splitlines()] == [0, 1, 2]


def test_a_video_of_too_many_pixels(run: Run) -> None:
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(2):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    err = one_sentence(*run("clip.avi", "--max-pixels", "3071"))
    assert "64 wide and 48 high, more than 3071 pixels" in err
    assert run("clip.avi", "--max-pixels", "3072")[0] == 0


def test_a_cut_video_keeps_what_was_read(run: Run) -> None:
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5, (384, 288))
    for _ in range(20):
        writer.write(np.random.default_rng(0).integers(0, 256, (288, 384, 3)).astype(np.uint8))
    writer.release()
    whole = Path("clip.avi").read_bytes()
    Path("clip.avi").write_bytes(whole[: len(whole) * 3 // 4])
    code, out, err = run("clip.avi", "--batch", "2")
    assert code == 1
    assert "clip.avi" in err
    assert int(re.search(r"clip.avi 384×288, (\d+) frames", out).group(1)) > 8
    assert Path("runs/detect/1/clip.mp4").stat().st_size > 0


@pytest.mark.slow
def test_in_a_pipe(cfg: Path, dog: Path, tmp_path: Path) -> None:
    """A picture on stdin; a reader that goes away after the first line; nothing of it is a traceback."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-c", "from detkit.cli import main; main()", "detect"]
    detkit = shlex.join([*start, "--model", str(cfg), "--device", "cpu", "--json"])
    piped = subprocess.run(
        f"{detkit} - < {shlex.quote(str(dog))}",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (piped.returncode, piped.stderr) == (0, "")
    assert json.loads(piped.stdout)["source"] == "-"
    many = " ".join([shlex.quote(str(dog))] * 40)
    cut = subprocess.run(
        f"{detkit} --batch 1 {many} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert cut.stderr == ""
    assert json.loads(cut.stdout)["width"] == 768


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(cfg: Path, dog: Path, tmp_path: Path, stop: signal.Signals) -> None:
    """The lines of what is done are kept; no hidden file and no empty folder is."""
    start = [sys.executable, "-m", "detkit.cli", "detect", "--model", str(cfg), "--device", "cpu", "--batch", "1"]
    running = subprocess.Popen(
        [*start, "--save", "image,json,crops", "--out", "out", *[str(dog)] * 300],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert running.stdout is not None
    seen = [running.stdout.readline() for _ in range(3)]
    running.send_signal(stop)
    _, err = running.communicate(timeout=60)
    assert all(line.startswith(str(dog)) for line in seen)
    assert running.returncode not in (0, 2)
    assert "Traceback" not in err
    lines = [json.loads(line) for line in (tmp_path / "out/detections.jsonl").read_text().splitlines()]
    assert 3 <= len(lines) < 300
    assert {line["source"] for line in lines} == {str(dog)}
    left = list(tmp_path.rglob("*"))
    assert not [path for path in left if path.name.startswith(".")]
    assert not [path for path in left if path.is_dir() and not any(path.iterdir())]
