import hashlib
import pickle
import time
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detkit.data.augment import Augment, MultiScale
from detkit.data.augment_labelled import ClassifierAugment
from detkit.data.crops import Crops, crop_objects
from detkit.data.loader import evaluation_loader, training_loader
from detkit.data.sample import Dataset, Sample
from detkit.errors import DetkitError
from detkit.preprocess import Preprocess

OFF = Augment(flip=0, jitter=0, scale=(1, 1), hue=0, saturation=1, exposure=1)
EVERYTHING = Augment(mosaic=0.3, multi_scale=MultiScale(low=64, high=128, step=32, every=2))
PREPROCESS = Preprocess(size=(64, 64))


def noise(index, height, width):
    return np.random.default_rng(index).integers(0, 256, (height, width, 3)).astype(np.uint8)


def noisy_dataset(count, most_objects=4):
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        height, width = rng.integers(20, 90, 2).tolist()
        corners = rng.uniform(0, 0.6, (rng.integers(0, most_objects + 1), 2))
        boxes = np.hstack([corners, corners + rng.uniform(0.1, 0.4, corners.shape)]) * np.array([width, height] * 2)
        flags = rng.random((2, len(boxes))) < 0.3
        samples.append(
            Sample(
                index,
                Path(f"{index}.png"),
                height,
                width,
                boxes.astype(np.float32),
                rng.integers(0, 3, len(boxes)),
                *flags,
                draw=partial(noise, index, height, width),
            )
        )
    return Dataset(Path("noise"), None, ("a", "b", "c"), samples, (1, 2, 3), [])


def digest(*tensors):
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def digests(batch, targets):
    """One number for each picture with its target and proposals."""
    rows = []
    for i, target in enumerate(targets):
        tensors = [batch.images[i], batch.sizes[i], target.boxes, target.labels, target.crowd, target.difficult]
        if batch.proposals is not None:
            tensors.append(batch.proposals.boxes[i, : batch.proposals.count[i]])
        rows.append(digest(*tensors))
    return rows


def epoch(dataset, number=1, augment=EVERYTHING, batch_size=8, **options):
    loader = training_loader(dataset, PREPROCESS, augment, batch_size=batch_size, seed=7, **options)
    loader.set_epoch(number)
    steps = [digests(*step) for step in loader]
    assert len(loader) == len(steps)
    return steps


def test_the_same_batches_for_any_number_of_workers_and_processes() -> None:
    dataset = noisy_dataset(37)
    proposals = [sample.boxes for sample in dataset.samples]
    expected = epoch(dataset, proposals=proposals)
    assert [len(step) for step in expected] == [8, 8, 7, 7, 7]
    assert epoch(dataset, proposals=proposals, workers=1) == expected
    for world_size, workers in ((1, 2), (2, 0), (4, 0), (2, 2)):
        share = {"batch_size": 8 // world_size, "world_size": world_size, "workers": workers, "proposals": proposals}
        ranks = [epoch(dataset, rank=rank, **share) for rank in range(world_size)]
        assert [list(chain(*shares)) for shares in zip(*ranks, strict=True)] == expected


def test_epochs_differ_and_come_back_in_any_order() -> None:
    dataset = noisy_dataset(9)
    loader = training_loader(dataset, PREPROCESS, Augment(), batch_size=4, seed=7, workers=1)
    drawn = {}
    for number in (0, 1, 0, 5):
        loader.set_epoch(number)
        steps = [digests(*step) for step in loader]
        assert drawn.setdefault(number, steps) == steps
    assert len({row for steps in drawn.values() for step in steps for row in step}) == 3 * 9
    other_seed = training_loader(dataset, PREPROCESS, Augment(), batch_size=4, seed=8)
    assert not {row for step in other_seed for row in digests(*step)} & {row for step in drawn[0] for row in step}


@given(pictures=st.integers(1, 200), batch_size=st.integers(1, 9), world_size=st.integers(1, 8), seed=st.integers(0, 9))
def test_no_picture_is_lost_or_drawn_twice(pictures, batch_size, world_size, seed) -> None:
    dataset = noisy_dataset(1)
    dataset = Dataset(dataset.source, None, dataset.classes, dataset.samples * pictures, (1, 2, 3), [])

    def steps(batch_size, world_size, rank):
        options = {"batch_size": batch_size, "world_size": world_size, "rank": rank}
        training = training_loader(dataset, PREPROCESS, OFF, seed=seed, **options)
        training.set_epoch(seed)
        evaluation = evaluation_loader(dataset, PREPROCESS, **options)
        return [[step.indices for step in loader.steps] for loader in (training, evaluation)]

    if pictures < world_size:
        with pytest.raises(DetkitError, match="use fewer devices"):
            steps(batch_size, world_size, 0)
        return
    ranks = [steps(batch_size, world_size, rank) for rank in range(world_size)]
    for kind, alone in enumerate(steps(batch_size * world_size, 1, 0)):
        together = [sum(shares, ()) for shares in zip(*(rank[kind] for rank in ranks), strict=True)]
        assert sorted(sum(together, ())) == list(range(pictures))
        lengths = [len(share) for rank in ranks for share in rank[kind]]
        assert min(lengths) >= 1
        if batch_size > 1 or world_size == 1 or pictures % world_size == 0:
            assert together == alone
            assert max(lengths) <= batch_size
        else:
            assert max(lengths) == 2
        totals = [len(step) for step in together]
        assert max(totals) - min(totals) <= 1
        if kind == 1:
            assert sum(together, ()) == tuple(range(pictures))


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(64, 96)),
        Preprocess(mode="stretch", size=(64, 96), interpolation="area"),
        Preprocess(size=(64, 96), minimal=True),
        Preprocess(mode="shortest_edge", size=(48, 100), interpolation="float_linear", fill=0),
        Preprocess(size=(64, 96), interpolation="darknet"),
    ],
)
def test_everything_off_is_plain_preprocessing(preprocess) -> None:
    dataset = noisy_dataset(12)
    loader = training_loader(dataset, preprocess, OFF, batch_size=5, seed=0)
    evaluation = evaluation_loader(dataset, preprocess, batch_size=5)
    for steps, (batch, targets) in zip(loader.steps, loader, strict=True):
        samples = [dataset.samples[i] for i in steps.indices]
        expected, placements = preprocess([sample.read() for sample in samples])
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.sizes, expected.sizes)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for target, sample, placement in zip(targets, samples, placements, strict=True):
            assert torch.equal(target.boxes, placement.to_canvas(sample.target().boxes))
            assert target.labels.tolist() == sample.labels.tolist()
            assert target.crowd.tolist() == sample.crowd.tolist()
            assert target.difficult.tolist() == sample.difficult.tolist()
    seen = []
    for batch, targets, placements, indices in evaluation:
        expected, _ = preprocess([dataset.samples[i].read() for i in indices])
        assert torch.equal(batch.images, expected.images)
        seen += indices
        for index, target, placement in zip(indices, targets, placements, strict=True):
            back = placement.to_picture(target.boxes)
            torch.testing.assert_close(back, dataset.samples[index].target().boxes, atol=1e-3, rtol=0)
    assert seen == list(range(12))


def test_canvas_sizes_follow_the_step() -> None:
    dataset = noisy_dataset(20, most_objects=1)
    augment = OFF.model_copy(update={"multi_scale": MultiScale(low=64, high=192, step=64, every=3)})
    loader = training_loader(dataset, Preprocess(size=(64, 128), divisor=32), augment, batch_size=4, seed=1)
    sizes = []
    for number in range(12):
        loader.set_epoch(number)
        for step, (batch, _) in zip(loader.steps, loader, strict=True):
            assert batch.images.shape[2:] == step.size_hw
            sizes.append(step.size_hw)
    assert set(sizes) == {(32, 64), (64, 128), (96, 192)}
    assert all(len(set(sizes[i : i + 3])) == 1 for i in range(0, 60, 3))
    assert len({tuple(sizes[i : i + 3]) for i in range(0, 60, 3)}) == 3

    shortest = Preprocess(mode="shortest_edge", size=(64, 100))
    steps = training_loader(dataset, shortest, augment, batch_size=1, seed=1).steps
    assert {step.size_hw for step in steps} == {(64, 100), (128, 200), (192, 300)}


def test_canvas_sizes_must_fit_the_divisor() -> None:
    augment = Augment(multi_scale=MultiScale(low=320, high=608, step=16))
    with pytest.raises(DetkitError, match="step 16 must be multiples of the divisor 32"):
        training_loader(noisy_dataset(2), PREPROCESS, augment, batch_size=1, seed=0)


def test_one_picture_and_no_objects() -> None:
    loader = training_loader(
        noisy_dataset(1, most_objects=0),
        PREPROCESS,
        Augment(mosaic=0.5),
        batch_size=16,
        seed=0,
        proposals=[np.zeros((0, 4), np.float32)],
    )
    for number in range(5):
        loader.set_epoch(number)
        ((batch, (target,)),) = loader
        assert batch.images.shape == (1, 3, 64, 64)
        assert target.boxes.shape == batch.proposals.boxes[0].shape == (0, 4)


def test_proposals_lie_where_their_objects_lie() -> None:
    dataset = noisy_dataset(10)
    loader = training_loader(
        dataset,
        PREPROCESS,
        Augment(min_visibility=0, mosaic=0.3),
        batch_size=5,
        seed=0,
        proposals=[s.boxes for s in dataset.samples],
    )
    total = 0
    for batch, targets in loader:
        assert batch.proposals.count.tolist() == [len(target) for target in targets]
        for row, target in enumerate(targets):
            rows = batch.proposals.valid[row]
            assert torch.equal(batch.proposals.boxes[row, rows], target.boxes)
            assert (batch.proposals.scores[row, rows] == 1).all()
            total += len(target)
    assert total > 10


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    list(training_loader(noisy_dataset(3), PREPROCESS, EVERYTHING, batch_size=2, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_a_broken_picture_is_named(tmp_path, workers, training) -> None:
    Image.fromarray(noise(0, 30, 40)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    none = np.zeros(0, bool)
    samples = [
        Sample(stem, tmp_path / f"{stem}.png", 30, 40, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), none, none)
        for stem in ("good", "broken", "good")
    ]
    dataset = Dataset(tmp_path, None, ("a",), samples, (1,), [])
    options = {"batch_size": 1, "workers": workers}
    if training:
        loader = training_loader(dataset, PREPROCESS, Augment(), seed=0, **options)
    else:
        loader = evaluation_loader(dataset, PREPROCESS, **options)
    with pytest.raises(DetkitError, match=r"^\S*broken\.png: the picture is truncated or damaged") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_workers_start_beside_the_threads_of_opencv() -> None:
    cv2.setNumThreads(2)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (3000, 3000))  # starts OpenCV's threads
    time.sleep(0.2)  # and lets them fall asleep
    loader = training_loader(noisy_dataset(4), PREPROCESS, Augment(), batch_size=2, seed=0, workers=1)
    loader.timeout = 20  # instead of waiting for ever
    assert len(list(loader)) == 2
    assert cv2.getNumThreads() == 2


def test_workers_that_are_not_forked_read_the_same() -> None:
    loader = training_loader(noisy_dataset(3), PREPROCESS, EVERYTHING, batch_size=3, seed=0)
    (step,) = loader.steps
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert digests(*copy[step]) == digests(*loader.dataset[step])


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_augmentation(workers) -> None:
    dataset = crop_objects(noisy_dataset(37), Crops(min_side=0))
    count, augment = len(dataset), ClassifierAugment(repeats=3)
    whole = training_loader(dataset, PREPROCESS, augment, batch_size=12, seed=7)
    steps = [step.indices for step in whole.steps]
    numbers = [number for step in steps for number in step]
    assert len(numbers) == count  # the epoch is no longer
    pictures = [number % count for number in numbers]
    assert [pictures.count(picture) for picture in dict.fromkeys(pictures)].count(3) >= count // 3 - 1
    assert len(set(numbers)) == count  # every repetition has its own number, from which its randomness follows
    for step in steps:  # neighbours, which mixup mixes, are different pictures; MixUp takes the last for the first's
        assert all(a % count != b % count for a, b in zip(step, step[-1:] + step[:-1], strict=True))
    shares = [epoch(dataset, 0, augment, 4, world_size=3, rank=rank, workers=workers) for rank in range(3)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == epoch(dataset, 0, augment, 12)
    flat = list(chain(*epoch(dataset, 0, augment, 12)))
    assert len(set(flat)) == count  # no two are alike
