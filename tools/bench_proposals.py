"""Times selective search against opencv-contrib's, and compares what their boxes cover.

    python tools/bench_proposals.py --peer-python ~/peers/bin/python --json tools/results/bench_proposals.json

Both run their fast mode on the same pixels in memory, in processes that are already warm, one thread each, and take
turns on every picture (A B A B …), so that whatever else the machine does falls on both. Times are those of the
processor, which a busy machine disturbs least. `ratio_of_medians` is OpenCV's median over the pictures divided by
detkit's; `ratio` the median over pictures of the two times' ratio. Only pictures with a longer side of 500 pixels are
timed, and all are compared for coverage.

Coverage is that of `detkit propose --data`: of the first n boxes of each picture, for several n, and of as many as both
have of the picture (`equal_numbers`; there detkit's part is the mean and the range over eight seeds, as the order of
the boxes is partly random). detkit's are given for its defaults, which leave out boxes below 20 pixels as the authors'
program does, and with all boxes (min_side=1).

OpenCV's selective search is part of opencv-contrib 4; version 5 has none. It lives in an environment of its own,
because it would overwrite detkit's cv2. Without it only detkit is measured:

    python -m venv ~/peers && ~/peers/bin/pip install --no-deps "opencv-contrib-python-headless<5" && \
        ~/peers/bin/pip install numpy

`odd_shapes` says what each of the two does with pictures of a few pixels and long thin ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SEEDS = range(8)
ODD_SHAPES = ((1, 1), (1, 4000), (4000, 1), (2, 300), (3, 3))


def work() -> None:
    """Serve as a worker: read a picture's file and settings per line, answer with seconds and the file of the boxes."""
    try:
        from detkit.regions import SelectiveSearchConfig, propose
    except ModuleNotFoundError:
        run = _opencv
    else:

        def run(picture: Any, settings: dict[str, int]) -> Any:
            return propose(picture, SelectiveSearchConfig(mode="fast", **settings)).boxes

    import cv2

    cv2.setNumThreads(1)
    print(json.dumps({"opencv": cv2.__version__, "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        path, settings = json.loads(line)
        picture = np.load(path)
        begin = time.process_time()
        boxes = run(picture, settings)
        seconds = time.process_time() - begin
        np.save(f"{path}.boxes.npy", boxes)
        print(json.dumps(seconds), flush=True)


def _opencv(picture: Any, settings: dict[str, int]) -> Any:
    """OpenCV's boxes, which know no settings."""
    import cv2

    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(picture[..., ::-1]))
    search.switchToSelectiveSearchFast()
    boxes = search.process().astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


class Worker:
    """A contestant in a process of its own."""

    def __init__(self, python: str) -> None:
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [python, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.versions = self._answer()

    def run(self, path: Path, **settings: int) -> tuple[float, Any]:
        """Return the seconds and the boxes of a picture's file."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(path), settings]) + "\n")
        self.process.stdin.flush()
        seconds = self._answer()
        return seconds, np.load(f"{path}.boxes.npy")

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"ended with code {self.process.wait()}")
        return json.loads(line)


def measure(folder: Path, dataset: Any, peer: str | None, rounds: int) -> dict[str, Any]:
    """Time both on the pictures and compare their boxes with the objects."""
    from detkit.evaluate.proposals import cover
    from detkit.regions import Proposals

    workers = {"detkit": Worker(sys.executable)}
    if peer:
        workers["opencv"] = Worker(peer)
    files = []
    for number, sample in enumerate(dataset.samples):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], sample.read())
    for worker in workers.values():  # to compile, to fill caches
        worker.run(files[0])
    times: dict[str, list[float]] = {name: [] for name in workers}
    seeded: dict[int, list[Any]] = {}
    boxes: dict[str, list[Any]] = {name: [] for name in (*workers, "detkit, all boxes")}
    for file, sample in zip(files, dataset.samples, strict=True):
        found: dict[str, list[float]] = {name: [] for name in workers}
        timed = max(sample.height, sample.width) == 500
        for turn in range(rounds if timed else 1):
            for name, worker in workers.items():
                seconds, last = worker.run(file)
                found[name].append(seconds)
                if turn == 0:
                    boxes[name].append(last)
        boxes["detkit, all boxes"].append(workers["detkit"].run(file, min_side=1)[1])
        for seed in SEEDS if peer else ():
            seeded.setdefault(seed, []).append(workers["detkit"].run(file, seed=seed)[1][: len(boxes["opencv"][-1])])
        if timed:
            for name in workers:
                times[name].append(median(found[name]))
    versions = {name: worker.versions for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()

    def curve(tables: Any) -> list[dict[str, Any]]:
        found = [Proposals(table.astype(np.float32), np.ones(len(table), np.float32)) for table in tables]
        return _curve(cover(dataset, found))

    equal = {}
    if peer:
        counts = [len(table) for table in seeded[0]]
        ours = [curve(tables)[-1] for tables in seeded.values()]
        equal["opencv"] = curve([table[:n] for table, n in zip(boxes["opencv"], counts, strict=True)])[-1]
        equal["detkit"] = {key: sum(row[key] for row in ours) / len(ours) for key in equal["opencv"]}
        for name, pick in (("detkit, lowest", min), ("detkit, highest", max)):
            equal[name] = {key: pick(row[key] for row in ours) for key in equal["opencv"]}
    result: dict[str, Any] = {
        "timed_pictures": len(times["detkit"]),
        "median_seconds": {name: median(found) for name, found in times.items()},
        "coverage": {name: curve(tables) for name, tables in boxes.items()},
    }
    if peer:
        ratios = [theirs / ours for ours, theirs in zip(times["detkit"], times["opencv"], strict=True)]
        result |= {
            "ratio": median(ratios),
            "ratio_of_medians": median(times["opencv"]) / median(times["detkit"]),
            "ratio_min": min(ratios),
            "equal_numbers": equal,
        }
    return {"versions": versions} | result


def odd_shapes(folder: Path, pythons: dict[str, str]) -> dict[str, dict[str, str]]:
    """Say what each does with pictures that others break on; every picture gets a process of its own."""
    outcome: dict[str, dict[str, str]] = {name: {} for name in pythons}
    for height, width in ODD_SHAPES:
        file = folder / f"{height}x{width}.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
        for name, python in pythons.items():
            worker = Worker(python)
            try:
                said = f"{len(worker.run(file)[1])} boxes"
            except ChildProcessError as error:
                said = str(error)
            finally:
                worker.close()
            outcome[name][f"{height}×{width}"] = said
    return outcome


def _curve(coverage: Any) -> list[dict[str, Any]]:
    keys = ("boxes", "recall50", "recall70", "mabo")
    return [
        {"first": limit} | dict(zip(keys, row, strict=True))
        for limit, *row in zip(coverage.limits, *(getattr(coverage, key) for key in keys), strict=True)
    ]


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    for name, seconds in report["median_seconds"].items():
        print(f"{name}: {1000 * seconds:.0f} ms a picture (median of {report['timed_pictures']})")
    if "ratio" in report:
        print(f"detkit is {report['ratio_of_medians']:.1f} times faster (slowest picture {report['ratio_min']:.1f})")
    for name, rows in report["coverage"].items():
        print(f"\n{name}\n first  boxes  recall.5  recall.7  MABO")
        for row in rows:
            if row["first"] >= 50:
                numbers = f"{row['recall50']:.3f}     {row['recall70']:.3f}     {row['mabo']:.3f}"
                print(f"{row['first']:6d} {row['boxes']:6.0f}  {numbers}")
    if "equal_numbers" in report:
        print(f"\nas many boxes of a picture as both have; detkit over {len(SEEDS)} seeds:")
        for name, row in report["equal_numbers"].items():
            print(
                f"  {name}: {row['boxes']:.0f} boxes, recall {row['recall50']:.3f} and {row['recall70']:.3f}, "
                f"MABO {row['mabo']:.3f}"
            )
    for name, outcome in report["odd_shapes"].items():
        print(f"\n{name}: " + ", ".join(f"{shape}: {said}" for shape, said in outcome.items()))


def main() -> None:
    """Run the benchmark."""
    shared = Path(os.environ.get("DETKIT_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(shared / "voc2012_sample100"), help="pictures and their objects")
    parser.add_argument("--split", help="the part of the data")
    parser.add_argument("--pictures", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--rounds", type=int, default=3, help="times that each runs on a picture")
    parser.add_argument("--peer-python", metavar="PATH", help="interpreter of an environment with opencv-contrib 4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    from dataclasses import replace

    from detkit import __version__
    from detkit.data.dataset import load_dataset

    dataset = load_dataset(options.data, options.split)
    dataset = replace(dataset, samples=dataset.samples[: options.pictures])
    pythons = {"detkit": sys.executable} | ({"opencv": options.peer_python} if options.peer_python else {})
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), dataset, options.peer_python, options.rounds)
        odd = odd_shapes(Path(folder), pythons)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "detkit": __version__,
        "data": f"{Path(options.data).name}, {len(dataset)} pictures",
        "rounds": options.rounds,
        **measured,
        "odd_shapes": odd,
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
