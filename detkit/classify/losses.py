"""What a classifier learns from: mixed pictures with soft labels, and a teacher.

mixup: Zhang et al., 2017, arXiv 1710.09412. CutMix: Yun et al., 2019, arXiv 1905.04899. Label smoothing: Szegedy et
al., 2015, arXiv 1512.00567, section 7. Distillation: DeiT (Touvron et al., 2020, arXiv 2012.12877), eq. 2 and 3.
Classifiers in the middle: GoogLeNet (Szegedy et al., 2014, arXiv 1409.4842), section 5.
Shapes: B pictures, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


class Mixing:
    """Mixes the pictures of a batch, and makes their labels soft.

    mixup, cutmix: α of the Beta(α, α) of which the share of the second picture is drawn; 0 for none. With both, one is
    drawn for each batch. smoothing: the share of every label that goes to all classes alike.
    """

    def __init__(self, num_classes: int, mixup: float = 0, cutmix: float = 0, smoothing: float = 0) -> None:
        self._classes = num_classes
        self._smoothing = smoothing
        kinds: list[tuple[Any, float]] = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        mixes = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] and labels [B] → mixed pictures and what is true of them, shares [B, C]."""
        if self._mix is None:
            truth = F.one_hot(labels, self._classes).to(images.dtype)
        else:
            images, truth = self._mix(images, labels)
        return images, truth * (1 - self._smoothing) + self._smoothing / self._classes


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return τ² KL(teacher ‖ student) of scores [B, C] softened by τ, the mean over pictures: DeiT, eq. 2.

    The paper writes KL(student, teacher); its released code, as Hinton et al. (2015, arXiv 1503.02531), has the
    teacher's probabilities as the truth. That code divides by B·C, not by B: its λ and τ do not carry over.
    """
    own, given = (F.log_softmax(scores.float() / temperature, dim=1) for scores in (student, teacher))
    return F.kl_div(own, given, reduction="batchmean", log_target=True) * temperature**2


def classifier_losses(
    heads: Tensor,
    truth: Tensor,
    teacher: Tensor | None = None,
    weight: float = 0,
    temperature: float | None = None,
    auxiliary: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the loss terms of a classifier, weighted.

    heads [B, H, C]: scores of the class, and of distillation where there is a second head. truth [B, C]. teacher
    [B, C]: the teacher's scores; weight: λ. With a temperature its probabilities are learned (DeiT, eq. 2), without one
    its decision (eq. 3, where λ is ½). Without a teacher the mean of the heads learns the truth. auxiliary [B, A, C]:
    scores of classifiers in the middle of the network, each of which counts 0.3 (GoogLeNet, section 5).
    """
    if auxiliary is not None and auxiliary.shape[1]:
        scores = auxiliary.float()
        added = torch.stack([F.cross_entropy(scores[:, i], truth) for i in range(scores.shape[1])]).sum()
        return classifier_losses(heads, truth, teacher, weight, temperature) | {"auxiliary": 0.3 * added}
    if teacher is None:
        return {"classes": F.cross_entropy(heads.mean(1).float(), truth)}
    own = F.cross_entropy(heads[:, 0].float(), truth)
    student = heads[:, -1]
    if temperature is None:
        distilled = F.cross_entropy(student.float(), teacher.argmax(1))
    else:
        distilled = distillation_loss(student, teacher, temperature)
    return {"classes": (1 - weight) * own, "distillation": weight * distilled}
