"""What `detkit models` tells: of all that there is, as it is measured, and at once."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from detkit.backbones import BACKBONES, BackboneConfig, build_backbone
from detkit.backbones.zoo import ZOO
from detkit.classify.classifier import Classifier
from detkit.config import shipped_configs
from detkit.detectors import DETECTORS
from detkit.errors import DetkitError
from detkit.models import list_models, print_models, read_table

MEASURED_FAST = ("simple-cnn", "darknet53", "alexnet", "resnet50", "deit_s_distilled", "yolov3_tiny_coco", "rcnn_vgg16")
NAMES = [*BACKBONES, *ZOO, *shipped_configs()]


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[1] / "tools/models_table.py"
    spec = importlib.util.spec_from_file_location("models_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_detector_backbone_and_config_has_its_row() -> None:
    rows = read_table()
    assert [entry.name for entry in rows] == [*DETECTORS, *NAMES]
    assert all(entry.about for entry in rows)
    assert all(entry.parameters and entry.gflops for entry in rows if entry.kind != "detector")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in MEASURED_FAST else pytest.mark.slow) for name in NAMES]
)
def test_the_table_is_what_is_measured(tool, name: str) -> None:
    (row,) = (entry for entry in read_table() if entry.name == name and entry.kind != "detector")
    assert asdict(tool.jobs()[name]()) == asdict(row)


def test_detectors_are_told_by_their_paper(tool) -> None:
    assert [entry for entry in read_table() if entry.kind == "detector"] == tool.detectors()


def test_the_command_answers_without_pytorch_and_as_json() -> None:
    code = (
        "import sys, detkit.cli; sys.argv = ['detkit', 'models', '--filter', 'resnet50', '--json']\n"
        "try: detkit.cli.main()\n"
        "finally: print(sorted(set(sys.modules) & {'torch', 'timm', 'numpy'}))"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1] == "[]"
    found = {entry["name"]: entry for entry in json.loads(lines[0])}
    assert {"resnet50", "yolov3_resnet50_coco"} <= found.keys()
    assert found["resnet50"]["parameters"] == 25_557_032
    assert found["resnet50"]["strides"] == [2, 4, 8, 16, 32]
    assert found["resnet50"]["weights"] == "timm/resnet50.a1_in1k"


def test_a_filter_looks_in_names_kinds_and_papers() -> None:
    found = list_models("2103.14030")
    assert {entry.name for entry in found if entry.kind == "backbone"} == {"swin_t", "swin_s", "swin_b", "swin_l"}
    assert "faster_rcnn_swin-t-fpn" in {entry.name for entry in found}
    assert {entry.name for entry in list_models("DETECTOR ") if entry.kind == "detector"} == set(DETECTORS)
    with pytest.raises(DetkitError, match="--filter nonsense: no model has that"):
        list_models("nonsense")


def test_timms_others_are_found_under_its_name() -> None:
    assert not [entry for entry in list_models() if entry.kind == "timm"]
    found = {entry.name: entry for entry in list_models("timm/hrnet_w18")}
    assert {"timm/hrnet_w18", "timm/hrnet_w18_small"} <= found.keys()
    assert found["timm/hrnet_w18"].weights == "timm/hrnet_w18.ms_aug_in1k"
    with pytest.raises(DetkitError, match="no model has that"):
        list_models("timm/nonsense")


def test_people_get_lines_that_a_narrow_terminal_holds() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_models([*list_models(), *list_models("timm/hrnet_w18_small_v2")], console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    (at,) = (i for i, line in enumerate(lines) if line.startswith("  resnet50 "))
    assert lines[at].split() == ["resnet50", "25.56", "8.18", "224×224", "2", "4", "8", "16", "32"]
    assert lines[at + 1].split() == ["timm/resnet50.a1_in1k"]
    assert [line.split() for line in lines if line.startswith("  rcnn_vgg16 ")] == [
        ["rcnn_vgg16", "14.77", "61387", "500×500", "32"]
    ]
    assert "1 of timm" in lines
    names = [line.split()[0] for line in lines if re.match("  [^ ]", line)]
    assert set(names) == {"name", *DETECTORS, *NAMES, "timm/hrnet_w18_small_v2"}


def test_a_detector_of_proposals_costs_as_much_as_all_that_it_looks_at(tool) -> None:
    """Of R-CNN, 2000 crops that a classifier of 21 + 4 · 20 numbers sees."""
    crop = tool.cost(lambda: Classifier(build_backbone(BackboneConfig(name="vgg16"), (32,)), 101), (224, 224))[2]
    costs = {entry.name: entry.gflops for entry in read_table()}
    assert costs["rcnn_vgg16"] == pytest.approx(2000 * crop, rel=1e-4)
    # The head of 4096, 4096 and 101 numbers on 7 × 7 cells of 512 channels, for 2000 regions and for 300; and the RPN.
    head, rpn = 2e-9 * (25088 * 4096 + 4096**2 + 4096 * 101), 2e-9 * 38 * 63 * 512 * (9 * 512 + 9 * 5)
    assert costs["fast_rcnn_vgg16"] - costs["faster_rcnn_vgg16"] == pytest.approx(1700 * head - rpn, rel=1e-3)
