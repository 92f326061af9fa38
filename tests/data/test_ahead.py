import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count, repeat

import pytest

from detkit.data.ahead import read_ahead
from detkit.errors import DetkitError


class Counter:
    """Jobs that give their number, and what is known of those begun."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.changed = threading.Condition()

    def job(self, number: int) -> int:
        with self.changed:
            self.begun.append(number)
            self.changed.notify_all()
        return number

    def jobs(self, n: int) -> list[Callable[[], int]]:
        return [partial(self.job, number) for number in range(n)]

    def settled(self) -> list[int]:
        """Return the jobs begun once none has begun for a while."""
        with self.changed:
            while self.changed.wait(0.1):
                pass
            return sorted(self.begun)


def one_pixel(_: int) -> int:
    return 1


def test_results_keep_the_order_of_the_jobs() -> None:
    held = [threading.Event() for _ in range(8)]

    def job(number: int) -> int:  # the jobs of a batch of four end in reverse
        if number % 4 < 3:
            held[number + 1].wait(5)
        held[number].set()
        return number

    jobs = (partial(job, number) for number in range(8))
    assert list(read_ahead(jobs, one_pixel, workers=4, ahead=4)) == list(range(8))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_jobs_than_may_wait(n: int) -> None:
    assert list(read_ahead(Counter().jobs(n), one_pixel, workers=4, ahead=8)) == list(range(n))


def test_no_more_begin_than_may_wait() -> None:
    counter = Counter()
    with closing(read_ahead(counter.jobs(30), one_pixel, workers=2, ahead=5)) as results:
        assert next(results) == 0
        assert counter.settled() == [0, 1, 2, 3, 4, 5]  # the first, which was yielded, made room for one
        assert next(results) == 1
        assert counter.settled() == [0, 1, 2, 3, 4, 5, 6]


def test_none_begins_while_large_results_wait() -> None:
    counter = Counter()
    with closing(read_ahead(counter.jobs(30), lambda number: 100, workers=1, ahead=16, max_pixels=250)) as results:
        assert next(results) == 0
        assert counter.settled() == [0, 1, 2, 3]  # 300 pixels wait
        assert next(results) == 1
        assert counter.settled() == [0, 1, 2, 3, 4]
        assert list(results) == list(range(2, 30))


@pytest.mark.parametrize("workers", [1, 4])
def test_a_result_larger_than_the_limit_is_read_when_asked_for(workers: int) -> None:
    results = read_ahead(Counter().jobs(40), lambda number: 1000, workers=workers, ahead=16, max_pixels=1)
    assert list(results) == list(range(40))


def test_held_pixels_never_pass_the_limit_by_more_than_one_result_for_each_worker() -> None:
    alive, most = 0, 0
    lock = threading.Lock()

    def job() -> int:
        nonlocal alive, most
        with lock:
            alive += 10
            most = max(most, alive)
        return 10

    for result in read_ahead([job] * 300, lambda pixels: pixels, workers=4, ahead=16, max_pixels=30):
        with lock:
            alive -= result
    assert most <= 30 + (4 + 1) * 10  # and the result on its way to the caller


def test_none_ends_an_endless_row() -> None:
    following = partial(next, iter(range(7)), None)
    assert list(read_ahead(repeat(following), one_pixel, workers=1, ahead=4)) == list(range(7))


def test_an_error_is_raised_in_its_turn() -> None:
    def fail() -> int:
        raise DetkitError("a.jpg: is not a picture")

    results = read_ahead([*Counter().jobs(3), fail, *Counter().jobs(3)], one_pixel, workers=4, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DetkitError, match=r"a\.jpg"):
        next(results)


def test_closing_ends_the_threads_even_those_that_wait_for_room() -> None:
    before = threading.active_count()
    counter = Counter()
    endless = (partial(counter.job, number) for number in count())
    results = read_ahead(endless, lambda number: 100, workers=4, ahead=16, max_pixels=1)
    assert next(results) == 0
    begun = counter.settled()
    results.close()
    assert threading.active_count() == before
    assert counter.settled() == begun  # those that waited did not begin after all
