"""The two bodies of YOLOv1: Extraction and the Darknet reference network."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones.darknet import DarknetReference, Extraction
from detkit.classify.classifier import Classifier


@pytest.mark.parametrize(
    ("body", "convolutions", "parameters"), [(Extraction, 20, 22_412_224), (DarknetReference, 7, 6_294_416)]
)
def test_convolutions_and_parameters(body, convolutions, parameters) -> None:
    with torch.device("meta"):
        network = body()
    assert len(list(network.darknet_layers())) == convolutions
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_extraction_classifies_at_the_cost_that_the_authors_state() -> None:
    # "Only using 8.52 billion operations for a forward pass", of a picture of 224 × 224 (arXiv 1612.08242, section 3).
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        scores = Classifier(Extraction(), 1000, pool="scores").eval()(torch.zeros(1, 3, 224, 224))
    assert scores.shape == (1, 1000)
    assert counter.get_total_flops() / 1e9 == pytest.approx(8.52, abs=0.005)


@pytest.mark.parametrize(("body", "stages"), [(Extraction, 5), (DarknetReference, 7)])
def test_stages_leave_nothing_out(body, stages) -> None:
    with torch.device("meta"):
        network = body()
    found = network.stages_from_picture()
    assert len(found) == stages
    assert [p.shape for stage in found for p in stage.parameters()] == [p.shape for p in network.parameters()]
