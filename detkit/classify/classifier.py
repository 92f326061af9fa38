"""The classifier over every backbone: a feature map or a token, averaged, and one linear layer.

Network in Network (Lin et al., 2013, arXiv 1312.4400), section 3.2, for the global average; YOLO9000 (Redmon and
Farhadi, 2016, arXiv 1612.08242), table 6, for scores that are averaged; DeiT (Touvron et al., 2020, arXiv 2012.12877),
section 4, for the token of distillation.
Shapes: B pictures, C classes, H heads (two with a token of distillation, else one), D channels of the last map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from detkit.backbones import BackboneConfig
from detkit.backbones.base import Backbone, WholeNetwork
from detkit.backbones.layers import ACTIVATIONS
from detkit.config import Strict
from detkit.detectors.base import Normalize
from detkit.errors import DetkitError

Pool = Literal["features", "scores", "token", "own"]


def require_finite_scores(scores: Tensor) -> Tensor:
    """Return scores; raises DetkitError where one is not finite, for then none of them says anything."""
    if not scores.isfinite().all():
        raise DetkitError(
            "the classifier's scores are not finite: its weights have diverged, or are too large for the precision; "
            "use others, or --precision fp32"
        )
    return scores


class Classifier(nn.Module):
    """A backbone as a classifier: its last map, averaged, or its tokens → dropout → a linear layer to C classes.

    Of Darknet-19 with averaged scores the network of YOLO9000's table 6; of Darknet-53, where Darknet averages first,
    that of YOLOv3's.

    pool: what stands for the picture. `features`: the last map's average; `scores`: the average of the scores of all
    its places, as in Darknet; `token`: a plain transformer's class token, and the one of distillation where it has one;
    `own`: what its paper has there, of a whole network of timm's or torchvision's, or its .cfg.
    norm: layer norm before the linear layer, which transformers and ConvNeXt leave to their classifier. activation: of
    the scores of each place, `leaky` in the released extraction.cfg. Raises DetkitError where a backbone has no token.
    """

    class Config(Strict):
        """The backbone, the stride of the map that is looked at, and what the class says."""

        backbone: BackboneConfig
        stride: PositiveInt = 32
        pool: Pool = "features"
        norm: bool = False
        dropout: float = Field(0, ge=0, lt=1)
        activation: Literal["linear", "leaky"] = "linear"

        @model_validator(mode="after")
        def _parts_fit_the_pool(self) -> Classifier.Config:
            if self.activation != "linear" and self.pool != "scores":
                raise ValueError("activation: only scores that are averaged have one; set pool: scores")
            if self.norm and self.pool in ("scores", "own"):
                raise ValueError(f"norm: with pool {self.pool} there is none of detkit's; set pool: features")
            return self

    def __init__(
        self,
        backbone: Backbone | WholeNetwork,
        num_classes: int,
        *,
        pool: Pool = "features",
        norm: bool = False,
        dropout: float = 0,
        activation: str = "linear",
    ) -> None:
        super().__init__()
        tokens = backbone.class_tokens if isinstance(backbone, Backbone) else 0
        if pool == "token" and not tokens:
            raise DetkitError("classifier.pool: the backbone has no class token; take `features`")
        self.num_classes = num_classes
        self.pool = pool
        self.normalize = Normalize(backbone.mean, backbone.std)
        self.backbone = backbone
        if isinstance(backbone, WholeNetwork):
            return
        channels = backbone.channels[-1]
        self.norm = nn.LayerNorm(channels, eps=1e-6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module = nn.Linear(channels, num_classes)
        if pool == "scores":
            self.head = nn.Conv2d(channels, num_classes, 1)
        self.activation = ACTIVATIONS[activation]()
        # Its name is timm's and the released DeiT's.
        self.head_dist = nn.Linear(channels, num_classes) if pool == "token" and tokens > 1 else None

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] RGB 0 … 1 → scores before the softmax [B, C], the mean of the heads.

        DeiT's paper adds the heads' softmax; its released code takes the mean of their scores.
        """
        return self.heads(images).mean(1)

    def heads(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] → the scores of each head [B, H, C]: the class', then that of distillation."""
        images = self.normalize(images)
        scores: Tensor
        if isinstance(self.backbone, WholeNetwork):
            scores = self.backbone(images)
            return scores
        if self.pool == "token":
            assert isinstance(self.backbone, Backbone)
            tokens = self.dropout(self.norm(self.backbone.tokens(images)))
            layers = [self.head] if self.head_dist is None else [self.head, self.head_dist]
            return torch.stack([layer(tokens[:, i]) for i, layer in enumerate(layers)], 1)
        features = self.backbone(images)[-1]
        if self.pool == "scores":
            scores = self.activation(self.head(self.dropout(features))).mean((2, 3))
        else:
            scores = self.head(self.dropout(self.norm(features.mean((2, 3)))))
        return scores[:, None]

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] → `heads`, and scores of classifiers that only help to learn [B, classifiers, C]."""
        if isinstance(self.backbone, WholeNetwork):
            return self.backbone.with_auxiliary(self.normalize(images))
        heads = self.heads(images)
        return heads, heads[:, :0]

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The layers in the order of a .weights file; raises DetkitError for a backbone that is not Darknet's."""
        layers: Any = getattr(self.backbone, "darknet_layers", None)
        if layers is None:
            raise DetkitError(f"{type(self.backbone).__name__} has no Darknet layout; pass a .safetensors file")
        yield from layers()
        if self.pool != "own":
            yield self.head
