"""Networks with the classifier of their paper, such as VGG's connected layers, XCiT's class attention, DeiT's tokens.

Shapes: B pictures of H × W, C classes, heads (two with a token of distillation, else one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from detkit.backbones import BackboneConfig
from detkit.backbones.base import WholeNetwork
from detkit.backbones.timm import MISFIT, Unfilled, by, check_name, first_line, load_or_explain, under_timms_names
from detkit.backbones.torchvision import WHOLE
from detkit.backbones.zoo import ZOO
from detkit.errors import DetkitError


def build_whole(config: BackboneConfig, num_classes: int, size_hw: tuple[int, int], dropout: float = 0) -> WholeNetwork:
    """Build a network with its own classifier, for pictures of a size.

    dropout: in front of the last layer, 0 for what the network has by default. Raises DetkitError for a backbone of
    detkit's own, which has no other classifier than detkit's.
    """
    source = ZOO.get(config.name, config.name)
    if source.startswith("timm/"):
        name = source.removeprefix("timm/")
        return TimmNetwork(name, num_classes, config.pretrained, size_hw, dropout, config.drop_path)
    if source not in WHOLE:
        raise DetkitError(
            f"classifier.pool: {config.name} has no classifier of its own; take `features`, or `scores` as in Darknet"
        )
    if config.drop_path:
        raise DetkitError(f"backbone.drop_path: {config.name} has no blocks to pass over; set it to 0")
    try:
        with torch.device("meta"), torch.no_grad(), Unfilled():
            WHOLE[source](1, 0, False).eval()(torch.empty(1, 3, *size_hw))
    except RuntimeError as error:
        raise DetkitError(
            f"backbone.name: {config.name} cannot classify pictures of {by(size_hw)} ({first_line(error)}); set "
            "preprocess.size"
        ) from None
    return WHOLE[source](num_classes, dropout, config.pretrained)


class TimmNetwork(WholeNetwork):
    """A classifier of timm's, whose tensors have timm's names.

    name: as timm lists it. pretrained: download its weights; of other classes the last layer is new. size_hw: of the
    pictures; a model whose position tables are fixed is built for it. drop_path: the rate of its stochastic depth.
    Raises DetkitError for an unknown name, a size that the model cannot take, and weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool = False,
        size_hw: Sequence[int] = (224, 224),
        dropout: float = 0,
        drop_path: float = 0,
    ) -> None:
        super().__init__()
        check_name(name, pretrained)
        self.name = name
        options: dict[str, Any] = {"num_classes": num_classes}
        options |= {"drop_rate": dropout} if dropout else {}
        options |= {"drop_path_rate": drop_path} if drop_path else {}
        options = _fit(name, options, tuple(size_hw))
        self.model = load_or_explain(name, pretrained, lambda: timm.create_model(name, pretrained, **options))
        self.mean, self.std = (tuple(self.model.pretrained_cfg[key]) for key in ("mean", "std"))

    def taken_from(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every network, or under the names of its authors, which timm converts."""
        own = super().taken_from(tensors)
        if len(own) == len(self.state_dict()):
            return own
        theirs = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        return super().taken_from(under_timms_names(self.name, theirs, self.model))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores [B, heads, C]."""
        if isinstance(self.model, VisionTransformerDistilled):
            tokens = self.model.forward_features(images)
            return torch.stack([self.model.head(tokens[:, 0]), self.model.head_dist(tokens[:, 1])], 1)
        scores: Tensor = self.model(images)
        return scores[:, None]


def _fit(name: str, options: dict[str, Any], size_hw: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments with which the model takes pictures of this size."""
    reason = ""
    record: Any = timm.get_pretrained_cfg(name)
    for attempt in (options, options | {"img_size": size_hw}):
        try:
            with torch.device("meta"), torch.no_grad(), Unfilled():
                draft = timm.create_model(name, **attempt).eval()
            with torch.device("meta"), torch.no_grad():
                draft(torch.empty(1, 3, *size_hw))
        except MISFIT as error:
            if "'drop_path_rate'" in str(error):
                raise DetkitError(f"backbone.drop_path: timm/{name} has no stochastic depth; set it to 0") from None
            reason = reason or first_line(error)
        else:
            return attempt
    raise DetkitError(
        f"backbone.name: timm/{name} cannot classify pictures of {by(size_hw)} ({reason}); it was made for "
        f"{by(record.input_size[1:])}, set preprocess.size or take another model"
    )
