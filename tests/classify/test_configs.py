"""The configs of classifiers that come with detkit."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detkit.classify.model import build_classifier, read_classifier_config
from detkit.weights.darknet import darknet_header, load_darknet_weights, save_darknet_weights


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("convnext-t", 28_589_128),
        ("darknet19", 20_842_376),
        ("darknet53", 41_609_928),
        ("deit-s", 22_050_664),
        ("deit-s-distilled", 22_436_432),
        ("densenet121", 7_978_856),
        ("extraction", 23_437_224),
        ("googlenet", 13_004_888),
        ("resnet50", 25_557_032),
        ("swin-t", 28_288_354),
        ("vit-b", 86_567_656),
    ],
)
def test_parameters_are_the_papers(name, parameters) -> None:
    classes = f"classes=[{', '.join(f'c{i}' for i in range(1000))}]"
    with torch.device("meta"):
        network = build_classifier(read_classifier_config(f"classify_{name}_imagenet", [classes]))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_small_one_costs_what_its_header_says() -> None:
    config = read_classifier_config("classify_fasternet_coco")
    with torch.device("meta"):
        network = build_classifier(config)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, *config.preprocess.size))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(2.2, abs=0.05)
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.12, abs=0.005)


def test_darknets_weights_are_the_classifiers(tmp_path) -> None:
    options = read_classifier_config("classify_darknet19_imagenet", ["classes=[a, b, c]"])
    one, other = build_classifier(options), build_classifier(options)
    save_darknet_weights(tmp_path / "d.weights", one.darknet_layers(), darknet_header())
    load_darknet_weights(other.darknet_layers(), tmp_path / "d.weights")
    pictures = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(other(pictures), one(pictures))
