"""What a classifier learns from, against numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from detkit.classify.losses import Mixing, classifier_losses, distillation_loss

TRUTH = torch.tensor([[1.0, 0.0]])


def test_soft_distillation_by_hand() -> None:
    # τ = 2. The student's scores 2 ln 3 and 0 become the odds 3 : 1, the teacher's 0 and 0 become 1 : 1.
    student, teacher = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert distillation_loss(student, teacher, 2).item() == pytest.approx(4 * kl, rel=1e-6)
    # Without τ the odds are 9 : 1, so the cross-entropy of the first class is ln(10 / 9).
    terms = classifier_losses(student[:, None], TRUTH, teacher, weight=0.1, temperature=2)
    assert terms["classes"].item() == pytest.approx(0.9 * math.log(10 / 9), rel=1e-6)
    assert terms["distillation"].item() == pytest.approx(0.1 * 4 * kl, rel=1e-6)


def test_hard_distillation_by_hand_goes_through_the_second_head() -> None:
    heads = torch.tensor([[[math.log(3), 0.0], [math.log(4), 0.0]]])  # 3 : 1 and 4 : 1
    terms = classifier_losses(heads, TRUTH, torch.tensor([[0.0, 5.0]]), weight=0.5)
    assert terms["classes"].item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert terms["distillation"].item() == pytest.approx(0.5 * math.log(5), rel=1e-6)
    one = classifier_losses(heads[:, :1], TRUTH, torch.tensor([[0.0, 5.0]]), weight=0.5)
    assert one["distillation"].item() == pytest.approx(0.5 * math.log(4), rel=1e-6)


def test_distillation_is_a_mean_over_pictures() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    each = [distillation_loss(student[i : i + 1], teacher[i : i + 1], 3).item() for i in range(3)]
    assert distillation_loss(student, teacher, 3).item() == pytest.approx(sum(each) / 3, rel=1e-5)


def test_smooth_labels_are_those_of_cross_entropy() -> None:
    images, labels, scores = torch.rand(4, 3, 8, 8), torch.tensor([0, 2, 1, 2]), torch.randn(4, 3)
    same, truth = Mixing(3, smoothing=0.1)(images, labels)
    assert torch.equal(same, images)
    expected = F.cross_entropy(scores, labels, label_smoothing=0.1)
    torch.testing.assert_close(classifier_losses(scores[:, None], truth)["classes"], expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pictures_are(kind) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = labels.float()[:, None, None, None].expand(4, 3, 32, 32)  # each pixel says whose it is
    mixed, truth = Mixing(4, **{kind: 1.0})(images, labels)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(truth.sum(1), torch.ones(4))
    torch.testing.assert_close((truth * labels).sum(1), mixed.mean((1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert (len(mixed[1].unique()) == 1) == (kind == "mixup")


def test_with_both_each_batch_has_one_of_them() -> None:
    torch.manual_seed(0)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32)
    mixing = Mixing(4, mixup=1, cutmix=1)
    kinds = {len(mixing(images, torch.arange(4))[0][1].unique()) for _ in range(20)}
    assert kinds == {1, 2}
