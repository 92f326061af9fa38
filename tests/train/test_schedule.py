import math

import pytest
import torch
from torch import nn

from detkit.train.config import Cosine, Exponential, Plateau, Polynomial, Step, Train, Warmup
from detkit.train.schedule import (
    Length,
    ema_decay,
    evaluations_since_best,
    learning_rate_factor,
    run_length,
    update_average,
)


def test_length_of_a_run_counts_steps_not_batches() -> None:
    train = Train(batch_size=8, accumulate=3, warmup=Warmup(epochs=1.5))
    assert run_length(train, batches_per_epoch=10) == Length(4, 6)  # 3 + 3 + 3 + 1 batches
    pictures = Train(batch_size=8, accumulate=2, warmup=Warmup(pictures=40))
    assert run_length(pictures, batches_per_epoch=10) == Length(5, 3)  # 40 / 16, rounded up


def test_cosine_after_warm_up() -> None:
    train = Train(epochs=3, schedule=Cosine(name="cosine", final=0.1))
    length = Length(steps_per_epoch=3, warmup_steps=4)
    factors = [learning_rate_factor(train, step, length) for step in range(9)]
    half = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)]  # steps 4 … 8
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, *(0.1 + 0.9 * value for value in half)])
    assert factors[4] == 1
    assert factors[8] == pytest.approx(0.1)


def test_power_of_the_warm_up() -> None:
    train = Train(schedule=Step(name="step", milestones=[9]), warmup=Warmup(power=4))
    assert learning_rate_factor(train, 0, Length(5, 2)) == 0.5**4
    assert learning_rate_factor(train, 1, Length(5, 2)) == 1


def test_start_of_the_warm_up() -> None:
    train = Train(schedule=Step(name="step", milestones=[9]), warmup=Warmup(start=0.1, power=2))
    factors = [learning_rate_factor(train, step, Length(5, 3)) for step in range(4)]
    assert factors == pytest.approx([0.1 + 0.9 / 9, 0.1 + 0.9 * 4 / 9, 1, 1])


def test_no_warm_up_begins_at_the_full_rate() -> None:
    assert learning_rate_factor(Train(), 0, Length(5, 0)) == 1


def test_milestones_are_epochs_that_have_passed() -> None:
    train = Train(schedule=Step(name="step", milestones=[4, 2], factor=0.1))
    factors = [learning_rate_factor(train, epoch * 5, Length(5, 0)) for epoch in range(6)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_factor(train, 9, Length(5, 0)) == 1  # the last step of epoch 2


def test_a_stair_may_end_within_an_epoch() -> None:
    train = Train(schedule=Exponential(name="exponential", every=2.5, factor=0.9))
    factors = [learning_rate_factor(train, step, Length(2, 0)) for step in range(11)]
    assert factors == pytest.approx([1] * 5 + [0.9] * 5 + [0.81])


def test_plateaus_follow_from_the_scores() -> None:
    train = Train(schedule=Plateau(name="plateau", patience=2, factor=0.5))

    def factor(*scores: float) -> float:
        return learning_rate_factor(train, 100, Length(5, 0), scores)

    assert factor() == factor(0.1) == factor(0.1, 0.1) == 1
    assert factor(0.1, 0.1, 0.1) == 0.5
    assert factor(0.1, 0.1, 0.1, 0.05) == 0.5  # the count begins anew
    assert factor(0.1, 0.1, 0.1, 0.05, 0.1) == 0.25
    assert factor(0.1, 0.1, 0.2, 0.2, 0.3) == 1


@pytest.mark.parametrize(("scores", "waited"), [([], 0), ([0.1], 0), ([0.1, 0.3, 0.2, 0.3], 2), ([0.1, 0.2], 0)])
def test_evaluations_since_best(scores: list[float], waited: int) -> None:
    assert evaluations_since_best(scores) == waited


def test_decay_warms_up() -> None:
    assert [ema_decay(step, 0.5) for step in (0, 1, 7, 8, 9, 1000)] == [1 / 10, 2 / 11, 8 / 17, 0.5, 0.5, 0.5]


def test_average_moves_weights_and_statistics_and_copies_counts() -> None:
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([3.0, 5.0]))
    network.running_mean = torch.tensor([1.0, -1.0])
    network.num_batches_tracked = torch.tensor(7)
    update_average(average, network, decay=0.75)
    assert average.weight.tolist() == [1.5, 2.0]  # 1 · 0.75 + 3 · 0.25
    assert average.running_mean is not None
    assert average.running_mean.tolist() == [0.25, -0.25]
    assert average.num_batches_tracked is not None
    assert average.num_batches_tracked.item() == 7
    assert network.weight.tolist() == [3.0, 5.0]


def test_average_of_what_stays_the_same_is_exactly_that() -> None:
    network, average = nn.Linear(3, 3), nn.Linear(3, 3)
    average.load_state_dict(network.state_dict())
    for _ in range(100):
        update_average(average, network, decay=0.937)
    assert torch.equal(average.weight, network.weight)


def test_a_polynomial_falls_to_nothing_at_the_end() -> None:
    train = Train(epochs=4, schedule=Polynomial(name="polynomial", power=4), warmup=Warmup())
    length = run_length(train, 10)
    factors = [learning_rate_factor(train, step, length) for step in (0, 20, 30, 40)]
    assert factors == pytest.approx([1, 0.5**4, 0.25**4, 0])
