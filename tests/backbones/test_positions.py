"""Position tables at another size: equal to timm's own at theirs, interpolated at others, and still learned."""

import pytest
import timm
import torch
from torch.nn import functional as F

from detkit.backbones.positions import RelativeBias, loosen, run_at_any_size

TABLES = {"test_coatnet": "relative_position_bias_table", "tnt_s_patch16_224": "patch_pos", "volo_d1_224": "pos_embed"}


def small(name: str):
    options = {"depth": 1} if name.startswith("tnt") else {}
    indices = [1] if name.startswith("volo") else [-1]
    return timm.create_model(name, features_only=True, out_indices=indices, **options).eval()


@pytest.mark.parametrize("name", TABLES)
def test_at_its_own_size_a_model_is_timms_to_the_bit(name: str) -> None:
    model = small(name)
    size = model.pretrained_cfg["input_size"][1:]
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        (expected,) = model(images)
        loosen(model)
        (got,) = run_at_any_size(model, images)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TABLES)
def test_at_another_size_every_table_is_learned_through_its_interpolation(name: str) -> None:
    model = small(name)
    loosen(model)
    (maps,) = run_at_any_size(model, torch.rand(1, 3, 96, 64))
    (maps * torch.randn_like(maps)).sum().backward()
    tables = [p for key, p in model.named_parameters() if key.endswith(TABLES[name])]
    assert tables
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tables)
    (back,) = run_at_any_size(model, torch.rand(1, 3, *model.pretrained_cfg["input_size"][1:]))
    assert back.isfinite().all()


@pytest.mark.parametrize("flat", [True, False])
def test_a_relative_bias_is_read_by_the_distance_of_two_cells(flat: bool) -> None:
    kind = timm.layers.RelPosBias if flat else timm.layers.RelPosBiasTf
    own = kind(window_size=(3, 4), num_heads=2)
    torch.nn.init.normal_(own.relative_position_bias_table)
    bias = RelativeBias(own)
    torch.testing.assert_close(bias.get_bias()[0], own.get_bias().reshape(2, 12, 12))
    table = own.relative_position_bias_table
    table = table.T.reshape(2, 5, 7) if flat else table.flip(1, 2)
    bias.cells = 2, 5
    larger = F.interpolate(table[None], (3, 9), mode="bicubic", align_corners=False)[0]
    got = bias.get_bias()[0].reshape(2, 2, 5, 2, 5)
    for row, column, other_row, other_column in [(0, 0, 0, 0), (1, 4, 0, 1), (0, 2, 1, 3)]:
        expected = larger[:, row - other_row + 1, column - other_column + 4]
        torch.testing.assert_close(got[:, row, column, other_row, other_column], expected)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "volo_d1_224"])
def test_absolute_positions_keep_their_place_in_the_picture(name: str) -> None:
    """A table that rises from left to right does so over the cells of a wider picture, too."""
    model = small(name)
    seen = []
    plain = model.model
    plain.pos_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    table = getattr(plain, TABLES[name])
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
        ramp = torch.linspace(0, 1, 14)[None, :, None].expand(14, 14, table.shape[-1])
        if name.startswith("volo"):
            table.copy_(ramp[None])
        else:
            table[:, 1:].copy_(ramp.reshape(1, 196, -1))
        run_at_any_size(model, torch.rand(1, 3, 96, 448))
    got = seen[0] if name.startswith("volo") else seen[0][:, 1:].reshape(1, 6, 28, -1)
    assert got.shape[1:3] == (6, 28)
    torch.testing.assert_close(got[0, :, 1:-1, 0], got[0, :1, 1:-1, 0].expand(6, -1))  # alike in every row
    rising = got[0, 0, 2:-2, 0].diff()
    assert (rising > 0).all()
