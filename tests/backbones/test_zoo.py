"""Every name: the counts of its paper beside those of the table."""

import pytest

from detkit.backbones import BACKBONES
from detkit.backbones.zoo import ZOO
from detkit.models import read_table

ROWS = {entry.name: entry for entry in read_table() if entry.kind == "backbone"}
NAMES = [*BACKBONES, *ZOO]

# Millions of parameters and billions of multiply-adds as the papers state them: in their tables of results on ImageNet.
STATED = {
    "resnet18": (None, 1.8), "resnet34": (None, 3.6), "vgg19": (144, 19.6), "googlenet": (None, 1.5),
    "regnetx_200mf": (2.7, 0.2), "regnetx_400mf": (5.2, 0.4), "regnety_400mf": (4.3, 0.4), "regnety_4gf": (20.6, 4.0),
    "efficientnet_b0": (5.3, 0.39), "convnext_t": (28.6, 4.5), "convnext_s": (50.2, 8.7), "convnext_b": (88.6, 15.4),
    "deit_ti": (5.7, None), "deit_s": (22, 4.6), "deit_b": (86, 17.5),
    "pvt_v2_b0": (None, 0.6), "pvt_v2_b1": (None, 2.1), "pvt_v2_b2": (25.4, 4.0), "pvt_v2_b5": (82.0, 11.8),
    "swin_t": (28.3, 4.5), "swin_s": (49.6, 8.7), "swin_b": (87.8, 15.4),
    "swin_v2_t": (28, 5.9), "swin_v2_s": (50, 11.5),
    "xcit_t12": (6.7, 1.2), "xcit_s12": (26, 4.8), "xcit_s24": (48, 9.1), "volo_d1": (27, 6.8),
    "tnt_s": (23.8, 5.2), "tnt_b": (65.6, 14.1), "coatnet_0": (25, 4.2),
    "poolformer_s12": (12, None), "poolformer_s24": (21, None), "poolformer_m48": (73, None),
}  # fmt: skip


def test_the_table_has_every_name_and_no_other() -> None:
    assert list(ROWS) == NAMES
    assert not BACKBONES.keys() & ZOO.keys()
    for name, source in ZOO.items():
        assert ROWS[name].weights == (source if "." in source or source.startswith("torchvision/") else None)


@pytest.mark.parametrize("name", STATED)
def test_parameters_and_cost_are_the_papers(name: str) -> None:
    entry = ROWS[name]
    parameters, multiply_adds = STATED[name]
    if parameters is not None:
        assert entry.parameters / 1e6 == pytest.approx(parameters, rel=0.025)
    if multiply_adds is not None:
        assert entry.gflops / 2 == pytest.approx(multiply_adds, rel=0.1)
