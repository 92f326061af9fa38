import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit propose` in an empty folder: code, stdout, stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    picture = np.full((60, 80, 3), 90, np.uint8)
    picture[20:40, 30:60] = (200, 30, 30)
    assert cv2.imwrite("square.png", picture)

    def detkit(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", "propose", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


def one_sentence(code: int, out: str, err: str) -> str:
    """Check that it failed as a mistake of the user's does, and return what it said."""
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_boxes_are_drawn(run: Run) -> None:
    code, out, err = run("square.png", "--set", "min_side=5")
    assert (code, err) == (0, "")
    summary, saved = out.splitlines()
    assert re.fullmatch(r"square.png 80×60: \d+ proposals", summary)
    assert saved == f"saved to {Path('runs/propose/1')}"
    drawn = cv2.imread("runs/propose/1/square.png")
    assert drawn.shape == (60, 80, 3)
    assert (drawn != cv2.imread("square.png")).any()
    run("square.png", "--set", "min_side=5", "--draw", "1", "--out", "one")
    assert (cv2.imread("one/square.png") != drawn).any()


def test_a_line_of_json_for_each_picture(run: Run) -> None:
    cv2.imwrite("dot.png", np.zeros((1, 1, 3), np.uint8))
    before = sorted(Path().iterdir())
    code, out, err = run("square.png", "dot.png", "--json", "--mode", "single", "--set", "min_side=5")
    assert (code, err) == (0, "")
    square, dot = map(json.loads, out.splitlines())
    assert list(square) == ["source", "width", "height", "proposals"]
    assert (square["source"], square["width"], square["height"]) == ("square.png", 80, 60)
    assert {"box", "score"} == set(square["proposals"][0])
    boxes = np.array([found["box"] for found in square["proposals"]])
    assert (abs(boxes - [30, 20, 60, 40]) <= 2).all(1).any()
    scores = [found["score"] for found in square["proposals"]]
    assert scores == sorted(scores, reverse=True)
    assert [found["box"] for found in dot["proposals"]] == [[0, 0, 1, 1]]
    assert sorted(Path().iterdir()) == before


def test_a_file_of_proposals_serves_as_a_method(run: Run) -> None:
    _, lines, _ = run("square.png", "--json", "--method", "windows", "--set", "scales=[20]", "--max-proposals", "9")
    Path("made.jsonl").write_text(lines)
    _, again, _ = run("square.png", "--json", "--method", "file", "--file", "made.jsonl")
    assert len(json.loads(again)["proposals"]) == 9
    assert again == lines
    cv2.imwrite("other.png", np.zeros((9, 9, 3), np.uint8))
    assert "has no line for the picture other.png" in one_sentence(
        *run("other.png", "--json", "--method", "file", "--file", "made.jsonl")
    )


def test_options_reach_the_method(run: Run) -> None:
    def boxes(*options: str) -> list[list[float]]:
        return [found["box"] for found in json.loads(run("square.png", "--json", *options)[1])["proposals"]]

    assert boxes("--method", "grid", "--set", "divisions=[2]", "--set", "overlap=0")[0] == [0, 0, 40, 30]
    every = boxes("--method", "windows", "--seed", "5")
    assert boxes("--method", "windows", "--seed", "5", "--max-proposals", "3") == every[:3]
    assert boxes("--method", "windows", "--seed", "6") != every


def test_videos_and_json_files(run: Run) -> None:
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for shade in (0, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    code, out, _ = run("clip.avi", "--method", "grid", "--save", "json,image", "--out", "here")
    assert code == 0
    assert out.splitlines()[1] == "clip.avi frame 1 64×48: 284 proposals"
    lines = [json.loads(line) for line in Path("here/proposals.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1]
    assert Path("here/clip.mp4").stat().st_size > 0


def test_a_bad_picture_among_others(run: Run) -> None:
    Path("bad.jpg").write_text("text")
    code, out, err = run("square.png", "bad.jpg", "--json")
    assert code == 1
    assert len(out.splitlines()) == 1
    assert err.splitlines() == [
        "error: bad.jpg: is not a picture that can be read (JPEG, PNG, BMP, WebP or TIFF)",
        "1 of 2 sources could not be read",
    ]


DATA = "sample:shapes?pictures=4&size=240"


def test_a_data_set_fills_the_cache_and_gets_a_report(run: Run) -> None:
    code, out, err = run("--data", DATA, "--split", "train", "--set", "min_side=5")
    assert (code, err) == (0, "")
    assert "recall .5" in out
    assert "fast: 2134 boxes, MABO 0.804" in out
    assert "quality: 10108 boxes, MABO 0.879, recall .5 0.99" in out
    pictures = int(re.search(r"pictures: (\d+) \(0 from runs/proposals\)", out).group(1))
    assert len(list(Path("runs/proposals").glob("*/*.npy"))) == pictures > 0
    assert {path.name for path in Path("runs/propose/1").iterdir()} == {"coverage.json", "coverage.png"}

    code, out, err = run("--data", DATA, "--split", "train", "--set", "min_side=5", "--json", "--out", "again")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["made"], report["from_cache"], report["folder"]) == (0, pictures, "again")
    assert report["settings"]["min_side"] == 5
    assert report["recall50"][-1] > 0.8, "shapes on a ground are found"
    assert report["recall50"] == sorted(report["recall50"])
    assert report["published_voc07"]["quality"]["recall"] == 0.99
    assert json.loads(Path("again/coverage.json").read_text())["mabo"] == report["mabo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "pass either SOURCE"),
        ("square.png --data sample:shapes", "pass either SOURCE"),
        ("square.png --method grid --mode fast", "--mode belongs to --method selective-search, not to grid"),
        ("square.png --file x.jsonl", "--file belongs to --method file"),
        ("square.png --method file", "pass the file of proposals as --file"),
        ("square.png --method file --file none.jsonl", "none.jsonl: cannot be read"),
        ("square.png --method grid --seed 3", "--seed: there is nothing random in --method grid"),
        ("square.png --set min_sid=3", "unknown key 'min_sid'; did you mean 'min_side'"),
        ("square.png --set min_side=0", "--method selective-search: min_side"),
        ("square.png --save imges", "did you mean 'image'"),
        ("square.png --split val", "--split belongs to --data"),
        ("square.png --out used", "used: is not empty"),
        ("--data sample:shapes --save image", "--save belongs to SOURCE"),
        ("--data nowhere", "nowhere: no such file or folder"),
        ("none.png", "none.png: no such file or folder"),
        ("square.png --max-pixels 100", "more than the limit of 100"),
    ],
)
def test_mistakes(run: Run, arguments: str, message: str) -> None:
    if "used" in arguments:
        Path("used").mkdir()
        Path("used/old.txt").touch()
    assert message in one_sentence(*run(*shlex.split(arguments)))
    assert not Path("runs").exists()
