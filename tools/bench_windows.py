"""Times the two searches of a sliding-window detector over one picture, crop by crop and dense, in turns in one run.

    python tools/bench_windows.py --json tools/results/bench_windows.json

Both look at the same windows with the same random weights; `difference` is the largest between their logits, divided by
the deviation of the crops' logits of that class from window to window. A body with padding makes it (see
detkit/detectors/sliding_window.py). Reported are medians of the time that passes and, on the CPU, of the processor
time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from detkit.data.picture import sample_picture
from detkit.inference import for_inference
from detkit.model import build_detector, read_config


def searches(config: str, stride: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time both searches of a config's windows, `stride` pixels of the crop apart."""
    models = {}
    for way in ("crops", "dense"):
        read = read_config(config, [f"detector.search={way}", f"detector.windows.stride={stride}"])
        torch.manual_seed(0)
        models[way] = build_detector(read)
        for_inference(models[way], device)
    batch, _ = read.preprocess([sample_picture("astronaut")])
    images = batch.to(device).images
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in models}
    raw = {}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for way, model in models.items():
                begin, begin_cpu = time.perf_counter(), time.process_time()
                raw[way] = model(images)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[way].append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    logits = raw["crops"].logits
    return {
        "config": config,
        "stride": stride,
        "windows": len(raw["crops"].boxes),
        "difference": float(((logits - raw["dense"].logits).abs() / logits.std(1, keepdim=True)).max()),
        "times": {
            way: dict(
                zip(("ms", "cpu_ms"), (1000 * statistics.median(x) for x in zip(*rows[1:], strict=True)), strict=True)
            )
            for way, rows in times.items()
        },
    }


def main() -> None:
    """Measure, print and, if wanted, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="sliding_window_fasternet_raccoon")
    parser.add_argument(
        "--strides", type=int, nargs="+", default=[16, 8], help="divisors of the map's stride or multiples"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    cases = [searches(options.config, stride, options.rounds, device) for stride in options.strides]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {
            "system": platform.platform(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
        "searches": cases,
    }
    for case in cases:
        print(f"{case['config']}, stride {case['stride']}, {case['windows']} windows")
        for way, median in case["times"].items():
            print(f"  {way:<6} {median['ms']:9.1f} ms  {median['cpu_ms']:9.1f} ms of processor time")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
