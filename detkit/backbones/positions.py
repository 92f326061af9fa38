"""Position tables that timm's models read at one size only, made to fit a picture of any size by interpolation.

Training data-efficient image transformers (Touvron et al., 2020, arXiv 2012.12877), section 3, and Swin Transformer
(Liu et al., 2021, arXiv 2103.14030), section 3.2: tables are interpolated bicubically where the resolution changes.
Shapes: a map of h × w cells, a table of th × tw cells, H heads, C channels, N = h · w.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import RelPosBias, RelPosBiasTf
from timm.models.maxxvit import TransformerBlock2d
from timm.models.tnt import TNT
from timm.models.volo import VOLO
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class RelativeBias(nn.Module):
    """What each cell's attention to another adds by their distance: a table, of any number of cells [1, H, N, N].

    It takes the place of timm's own of an attention over a whole map, under the same name and with the same table: flat
    [(2·th − 1)(2·tw − 1), H], or [H, 2·th − 1, 2·tw − 1] as in TensorFlow. cells: (h, w) of the map, set by the
    attention before it asks.
    """

    def __init__(self, own: RelPosBias | RelPosBiasTf) -> None:
        super().__init__()
        self.relative_position_bias_table = own.relative_position_bias_table
        self.cells = self.table_cells = tuple(own.window_size)

    def get_bias(self) -> Tensor:
        """Return [1, H, N, N]; by the name under which timm's attention asks for it."""
        own: Tensor = self.relative_position_bias_table
        (height, width), (rows, columns) = self.cells, self.table_cells
        flat = own.ndim == 2  # else the table is TensorFlow's, which counts from the other end
        table = own.T.reshape(-1, 2 * rows - 1, 2 * columns - 1) if flat else own.flip(1, 2)
        if self.cells != self.table_cells:
            size = 2 * height - 1, 2 * width - 1
            table = F.interpolate(table[None], size, mode="bicubic", align_corners=False)[0]
        down, right = (_distances(cells, table.device) for cells in (height, width))
        bias = table[:, down[:, None, :, None], right[None, :, None, :]]  # [H, h, w, h, w]
        return bias.reshape(1, len(table), height * width, height * width)

    def forward(self, attention: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Add the bias to scores of attention [B, H, N, N]."""
        return attention + self.get_bias()


def _distances(cells: int, device: torch.device) -> Tensor:
    """Return how far cell j lies before cell i, from 0 on [cells, cells]."""
    place = torch.arange(cells, device=device)
    return place[:, None] - place + cells - 1


def loosen(model: nn.Module) -> None:
    """Replace, in place, the relative positions of attention over a whole map by such as fit every map."""
    for block in model.modules():
        if isinstance(block, TransformerBlock2d) and isinstance(block.attn.rel_pos, RelPosBias | RelPosBiasTf):
            block.attn.rel_pos = RelativeBias(block.attn.rel_pos)
            block.attn.register_forward_pre_hook(_tell_cells)


def _tell_cells(attention: Any, inputs: tuple[Any, ...]) -> None:
    cells = tuple(inputs[0].shape[-2:])
    if attention.rel_pos.cells != cells:
        attention.rel_pos.cells = cells


class WithTokens(nn.Module):
    """A plain transformer of timm's whose tokens for the whole picture are given beside its maps.

    It takes the place of timm's own of a pyramid, with the same names of tensors.
    """

    def __init__(self, pyramid: Any) -> None:
        super().__init__()
        self.model, self.out_indices = pyramid.model, pyramid.out_indices

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[B, 3, H, W] → of each block that is looked at, its map [B, C, h, w] and its T prefix tokens [B, T, C]."""
        found: list[tuple[Tensor, Tensor]] = self.model.forward_intermediates(
            images, indices=self.out_indices, return_prefix_tokens=True, intermediates_only=True
        )
        return found


def run_at_any_size(model: nn.Module, images: Tensor) -> Any:
    """Return what a timm model makes of pictures [B, 3, H, W], with absolute positions that fit their size."""
    plain = getattr(model, "model", model)
    if not isinstance(plain, VOLO | TNT):
        return model(images)
    key, table = _fitted(plain, images.shape[-2], images.shape[-1])
    return functional_call(model, {key if plain is model else f"model.{key}": table}, (images,))


def _fitted(module: VOLO | TNT, height: int, width: int) -> tuple[str, Tensor]:
    """Return the position table's name and what it is for pictures of this size."""
    if isinstance(module, VOLO):
        table: Tensor = module.pos_embed  # [1, th, tw, C], of cells of 16 pixels
        if table.shape[1:3] != (height // 16, width // 16):
            size = height // 16, width // 16
            table = F.interpolate(table.movedim(-1, 1), size, mode="bicubic", align_corners=False).movedim(1, -1)
        return "pos_embed", table
    embed = module.pixel_embed
    rows, columns = embed.dynamic_feat_size((height, width))
    if embed.img_size != (height, width):  # it looks at these numbers, and at nothing else of the size
        embed.img_size, embed.num_patches, module.num_patches = (height, width), rows * columns, rows * columns
    return "patch_pos", resample_abs_pos_embed(module.patch_pos, [rows, columns], list(embed.grid_size))
