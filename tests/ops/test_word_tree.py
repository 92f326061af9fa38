"""The softmax over a tree of classes, and the walk down it."""

import math

import pytest
import torch

from detkit.ops.word_tree import WordTree

# 0 animal (2 dog (5 terrier, 6 poodle), 3 cat), 1 vehicle (4 car), siblings not always side by side.
PARENTS = [-1, -1, 0, 0, 1, 2, 2]
SETS = [[0, 1], [2, 3], [4], [5, 6]]


def scores(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, len(PARENTS), generator=torch.Generator().manual_seed(0))


def test_probabilities_sum_to_one_at_each_node() -> None:
    conditional = WordTree(PARENTS).log_conditional(scores(4, 5)).exp()
    for members in SETS:
        torch.testing.assert_close(conditional[..., members].sum(-1), torch.ones(4, 5))
        torch.testing.assert_close(conditional[..., members], scores(4, 5)[..., members].softmax(-1))


def test_extreme_scores_stay_finite() -> None:
    x = torch.tensor([1e4, -1e4, 1e30, 1e30, 0, -1e30, 1e4])
    conditional = WordTree(PARENTS).log_conditional(x).exp()
    torch.testing.assert_close(conditional, torch.tensor([1, 0, 0.5, 0.5, 1, 0, 1]))


def test_the_children_of_a_node_share_its_probability() -> None:
    tree = WordTree(PARENTS)
    conditional = tree.log_conditional(scores(9))
    every = tree.log_probability(conditional, torch.arange(7)).exp()
    for parent, children in ((0, [2, 3]), (1, [4]), (2, [5, 6])):
        torch.testing.assert_close(every[:, children].sum(1), every[:, parent])
    torch.testing.assert_close(every[:, [3, 4, 5, 6]].sum(1), torch.ones(9))  # the leaves
    terrier = conditional.exp()[:, [0, 2, 5]].prod(1)
    torch.testing.assert_close(every[:, 5], terrier)
    labels = torch.tensor([5, 1, 3, 0, 6, 2, 4, 5, 5])
    each = tree.log_probability_of_each(conditional, labels).exp()
    torch.testing.assert_close(each, every[torch.arange(9), labels])


def test_the_gradient_is_probability_minus_truth_down_to_the_label() -> None:
    # delta_region_class in region_layer.c: along the path 1 − p for the node and −p for its siblings, nothing below.
    tree, x = WordTree(PARENTS), scores(1).requires_grad_()
    (-tree.log_probability_of_each(tree.log_conditional(x), torch.tensor([2]))).sum().backward()
    p = tree.log_conditional(x.detach()).exp()[0]
    expected = torch.tensor([p[0] - 1, p[1], p[2] - 1, p[3], 0, 0, 0])
    torch.testing.assert_close(x.grad[0], expected)


@pytest.mark.parametrize(
    ("conditional", "threshold", "label", "probability"),
    [
        ({0: 0.9, 2: 0.8, 5: 0.7}, 0.5, 5, 0.504),
        ({0: 0.9, 2: 0.8, 5: 0.69}, 0.5, 2, 0.72),  # 0.4968 for the terrier
        ({0: 0.9, 2: 0.8, 5: 0.3}, 0.1, 6, 0.504),  # the poodle is the better child
        ({0: 0.6, 2: 0.6, 5: 0.9}, 0.5, 0, 0.6),
        ({0: 0.4, 2: 0.9, 5: 0.9}, 0.5, 4, 0.6),  # the only child keeps all
        ({0: 0.55, 2: 0.2, 5: 0.9}, 0.99, 0, 0.55),  # one step at least
        ({0: 0.9, 2: 0.8, 5: 0.7}, 0, 5, 0.504),
    ],
)
def test_the_walk_ends_above_the_threshold(conditional, threshold, label, probability) -> None:
    p = torch.tensor([conditional[0], 1 - conditional[0], conditional[2], 1 - conditional[2], 1, conditional[5], 1])
    p[6] = 1 - p[5]
    found, log_p = WordTree(PARENTS).walk(p.log()[None].repeat(2, 1), threshold)
    assert found.tolist() == [label] * 2
    assert log_p.exp().tolist() == pytest.approx([probability] * 2)


def test_nothing_found_and_flat_trees_walk_too() -> None:
    label, log_p = WordTree(PARENTS).walk(torch.zeros(0, 7), 0.5)
    assert label.shape == log_p.shape == (0,)
    flat = WordTree([-1, -1, -1])
    x = torch.tensor([[0.0, math.log(2), 0]])
    torch.testing.assert_close(flat.log_conditional(x), x.log_softmax(1))
    assert flat.walk(x.log_softmax(1), 0.9)[0].tolist() == [1]


@pytest.mark.parametrize(
    ("parents", "message"),
    [([-1, 5], "label 1 has the parent 5"), ([-1, 2, 1], "label 1 is below itself"), ([0], "label 0 is below itself")],
)
def test_what_is_no_tree_is_refused(parents, message) -> None:
    with pytest.raises(ValueError, match=message):
        WordTree(parents)
