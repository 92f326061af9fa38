"""Reading ahead: the next pictures are decoded in threads while the network works on the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Condition
from typing import TypeVar

from detkit.data.picture import MAX_PIXELS

Result = TypeVar("Result")


def read_ahead(
    jobs: Iterable[Callable[[], Result | None]],
    pixels_of: Callable[[Result], int],
    *,
    workers: int,
    ahead: int,
    max_pixels: int = MAX_PIXELS,
) -> Generator[Result]:
    """Run jobs in threads and yield their results in order, until one is None or raises; its error is raised here.

    At most `ahead` jobs are begun before their results are asked for. None begins while results of max_pixels or more
    wait, save the one that is asked for: besides what was yielded, no more is held than max_pixels and a picture for
    each of the workers. pixels_of: how many pixels a result has. With one worker the jobs run one after the other.
    Close the generator (`contextlib.closing`) to end the threads without waiting for jobs that have not begun.
    """
    jobs = iter(jobs)
    room = Condition()
    held = 0  # pixels of the results that wait
    asked = 0  # number of the job whose result is yielded next
    closed = False

    def run(number: int, job: Callable[[], Result | None]) -> tuple[Result | None, int]:
        nonlocal held
        with room:
            room.wait_for(lambda: held < max_pixels or number == asked or closed)
        result = None if closed else job()
        pixels = 0 if result is None else pixels_of(result)
        with room:
            held += pixels
        return result, pixels

    pool = ThreadPoolExecutor(workers)
    try:
        begun = (pool.submit(run, number, job) for number, job in enumerate(jobs))
        waiting: deque[Future[tuple[Result | None, int]]] = deque(islice(begun, ahead))
        while waiting:
            result, pixels = waiting.popleft().result()
            if result is None:
                break
            with room:
                held -= pixels
                asked += 1
                room.notify_all()
            waiting.extend(islice(begun, 1))
            yield result
    finally:
        with room:
            closed = True
            room.notify_all()
        pool.shutdown(cancel_futures=True)
