import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit import cli
from detkit.config import find_config
from detkit.ops import kmeans

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit anchors` in an empty folder: code, stdout, stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(kmeans, "_MOST_STARTS", 8)

    def detkit(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", "anchors", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A COCO file: squares of 100 and 50 pixels in a picture of 800 × 400, a crowd, and a picture with nothing."""
    file = tmp_path / "boxes.json"
    sides = [(100, 0), (100, 0), (50, 0), (300, 1)]
    tree = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 400, "width": 800},
            {"id": 2, "file_name": "b.jpg", "height": 400, "width": 400},
        ],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [9, 9, side, side], "area": side**2, "iscrowd": crowd}
            for i, (side, crowd) in enumerate(sides, 1)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    file.write_text(json.dumps(tree))
    return file


def test_boxes_count_as_the_network_sees_them(run: Run, boxes: Path) -> None:
    code, out, _ = run("--data", boxes, "--kmeans", "-k", "2", "--size", "400", "--json")
    assert code == 0
    assert out.count("\n") == 1
    tree = json.loads(out)
    assert tree == {
        "data": str(boxes),
        "size": [400, 400],
        "objects": 3,
        "left_out": 1,
        "anchors": [[25, 25], [50, 50]],  # a letterbox halves the picture
        "average_iou": 1,
        "best_possible_recall": 1,
        "shares": pytest.approx([1 / 3, 2 / 3]),
        "scales": [
            {"stride": 8, "anchors": [[25, 25]], "share": pytest.approx(1 / 3)},
            {"stride": 16, "anchors": [[50, 50]], "share": pytest.approx(2 / 3)},
        ],
    }


def test_a_config_stretches(run: Run, boxes: Path) -> None:
    config = Path("mine.yaml")
    text = find_config("yolov3_tiny_coco").read_text().replace("letterbox", "stretch")
    config.write_text(text.replace("size: [416, 416]", "size: [320, 416]"))
    tree = json.loads(run("--data", boxes, "--config", config, "--kmeans", "-k", "2", "--json")[1])
    assert tree["size"] == [320, 416]
    assert tree["anchors"] == [[26, 40], [52, 80]]  # a side of 100 is 416/800 of it wide and 320/400 high
    assert [scale["stride"] for scale in tree["scales"]] == [16, 32]  # each needs one
    assert tree["config"]["anchors"][0] == [10, 14]
    assert tree["gain"] == pytest.approx(1 - tree["config"]["average_iou"])


def test_anchors_of_a_config_are_judged(run: Run, boxes: Path) -> None:
    code, out, _ = run("--data", boxes, "--config", "yolov3_tiny_coco")
    assert code == 0
    assert "new anchors would help: average IoU 0." in out
    # Sides of 52 and 26 at 416: IoU with 81 × 82, 37 × 58 and 23 × 27 by hand.
    large, small = 37 * 52 / (52 * 52 + 37 * 58 - 37 * 52), 23 * 26 / (26 * 26 + 23 * 27 - 23 * 26)
    assert f"average IoU {(2 * large + small) / 3:.4f} with the anchors of yolov3_tiny_coco" in out
    tree = json.loads(run("--data", boxes, "--config", "yolov3_tiny_coco", "--json", "--kmeans", "-k", "2")[1])
    assert tree["worthwhile"] is True
    assert tree["config"]["average_iou"] == pytest.approx((2 * large + small) / 3, abs=1e-6)


def test_anchors_of_yolov2_are_judged(run: Run, boxes: Path) -> None:
    arguments = ("--data", boxes, "--config", "yolov2_darknet19_coco")
    tree = json.loads(run(*arguments, "--json")[1])
    assert [scale["stride"] for scale in tree["scales"]] == [32]
    assert (tree["new"]["anchors"], tree["worthwhile"]) == ([[38, 38], [76, 76]], True)
    assert "new anchors would help: average IoU 0." in run(*arguments)[1]
    code, _, err = run(*arguments, "--kmeans", "-k", "2", "--write", "yolov2_darknet19_coco")
    assert (code, "is not overwritten" in err) == (2, True)


def test_good_anchors_need_no_new_ones(run: Run, boxes: Path) -> None:
    arguments = ("--data", boxes, "--config", "yolov3_tiny_coco", "--kmeans", "-k", "2", "--write", "new.yaml")
    code, out, _ = run(*arguments)
    assert (code, "written to new.yaml" in out) == (0, True)
    assert "new anchors would hardly help" in run("--data", boxes, "--config", "new.yaml")[1]
    tree = json.loads(run("--data", boxes, "--config", "new.yaml", "--json")[1])
    assert (tree["anchors"], tree["gain"], tree["worthwhile"]) == ([[26, 26], [52, 52]], 0, False)
    assert tree["new"]["anchors"] == tree["anchors"]


def test_a_config_of_ones_own_is_changed_in_place(run: Run, boxes: Path) -> None:
    shutil.copy(find_config("yolov3_tiny_coco"), "mine.yaml")
    before = Path("mine.yaml").read_text()
    assert run("--data", boxes, "--kmeans", "-k", "2", "--write", "mine.yaml")[0] == 0
    expected = before.replace("[[10, 14], [23, 27], [37, 58]]", "[[26, 26]]")
    assert Path("mine.yaml").read_text() == expected.replace("[[81, 82], [135, 169], [344, 319]]", "[[52, 52]]")


def test_forms_for_configs_and_cfgs(run: Run, boxes: Path) -> None:
    out = run("--data", boxes, "--kmeans", "-k", "2", "--size", "400")[1]
    assert "levels:\n  - {stride: 8, anchors: [[25, 25]]}\n  - {stride: 16, anchors: [[50, 50]]}\n" in out
    mask = "behind a [convolutional] with filters = 1 x (5 + classes)\nmask ="
    sections = f"# in that of stride 8, {mask} 0\n# in that of stride 16, {mask} 1\n"
    assert f"num=2\nanchors = 25,25, 50,50\n{sections}" in out
    assert "anchors: [[25, 25], [50, 50]]\n" in out
    assert "num=2\nanchors = 0.7812,0.7812, 1.562,1.562\n" in out
    assert "3 objects in 2 pictures, without 1 crowd or difficult object; letterbox to 400 × 400" in out


def test_a_curve_over_k(run: Run) -> None:
    data = "sample:shapes?pictures=20"
    code, out, _ = run("--data", data, "--kmeans", "-k", "1-4", "--json", "--plot", "curve.png")
    assert code == 0
    curve = json.loads(out)["curve"]
    assert [(point["k"], len(point["anchors"])) for point in curve] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert np.all(np.diff([point["average_iou"] for point in curve]) > 0)
    single = json.loads(run("--data", data, "--kmeans", "-k", "3", "--json")[1])
    assert single["anchors"] == curve[2]["anchors"]
    assert min(Image.open("curve.png").size) > 300
    lines = [line.split() for line in run("--data", data, "--kmeans", "-k", "1-4")[1].splitlines()]
    assert ["3", f"{curve[2]['average_iou']:.4f}", f"{curve[2]['best_possible_recall']:.4f}"] in lines


def test_a_picture_of_boxes_and_anchors(run: Run) -> None:
    assert run("--data", "sample:shapes?pictures=20", "--kmeans", "--plot", "new/folder/a.png")[0] == 0
    assert min(Image.open("new/folder/a.png").size) > 300


def test_published_data(run: Run, shared: Path) -> None:
    arguments = ("--data", shared / "bccd", "--kmeans", "-k", "6", "--json")
    out = run(*arguments)[1]
    tree = json.loads(out)
    assert tree["average_iou"] >= 0.865
    assert run(*arguments)[1] == out
    known = [[25, 25], [60, 57], [73, 61], [66, 70], [79, 74], [141, 129]]
    assert np.array(tree["anchors"]) == pytest.approx(np.array(known, float), abs=3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing: `detkit anchors --kmeans --data PATH` finds"),
        (["--kmeans"], "--data is missing: `detkit anchors --kmeans --data PATH` finds"),
        (["--data", "sample:shapes"], "--kmeans or --config is missing"),
        (["--data", "sample:shapes", "-k", "3"], "-k belongs to --kmeans"),
        (["--data", "sample:shapes", "--write", "a.yaml"], "--write belongs to --kmeans"),
        (["--data", "sample:shapes", "--kmeans", "-k", "0"], "-k 0: expected a number from 1 to 100"),
        (["--data", "sample:shapes", "--kmeans", "-k", "5-2"], "-k 5-2: expected"),
        (["--data", "sample:shapes", "--kmeans", "-k", "few"], "-k few: expected"),
        (["--data", "sample:shapes", "--kmeans", "-k", "1-9", "--write", "a.yaml"], "a range gives a curve"),
        (["--data", "sample:shapes", "--kmeans", "--plot", "a.jpg"], "--plot a.jpg: expected the name of a .png"),
        (["--data", "sample:shapes", "--kmeans", "--split", "trian"], "did you mean 'train'"),
        (["--data", "sample:shapes", "--config", "yolov3_tiny_coc"], "did you mean 'yolov3_tiny_coco'"),
        (["--data", "sample:shapes?pictures=3", "--kmeans", "-k", "90"], "different shapes; ask for at most that many"),
        (
            ["--data", "sample:shapes", "--kmeans", "--config", "yolov3_darknet53_coco", "-k", "2"],
            "k = 2: each of the 3 scales (strides 8, 16, 32) needs an anchor",
        ),
        (["--data", "nowhere", "--kmeans"], "nowhere: no such file or folder"),
        (["--data", "sample:shapes", "--kmeans", "--write", "yolov3_tiny_coco"], "comes with detkit"),
    ],
)
def test_bad_arguments(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert list(Path.cwd().iterdir()) == []


def test_no_objects(run: Run, boxes: Path) -> None:
    tree = json.loads(boxes.read_text())
    for annotations in ([], [one for one in tree["annotations"] if one["iscrowd"]]):
        boxes.write_text(json.dumps(tree | {"annotations": annotations}))
        code, _, err = run("--data", boxes, "--kmeans")
        assert code == 2
        assert "has no objects to learn" in err
