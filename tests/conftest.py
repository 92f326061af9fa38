"""Fixtures that many tests share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("detkit", deadline=None)  # the machine's speed is no property of the code
settings.load_profile("detkit")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or processes that tests interrupt would not end
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is imported: kernels then run on the CPU


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures, weights and published answers."""
    folder = Path(os.environ.get("DETKIT_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} (set DETKIT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The .weights file of a reference network; made once a session, 35 to 250 MB, and removed at its end."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("darknet") / f"{name}.weights"
            script = shared / "darknet_reference" / "make_weights.py"
            subprocess.run([sys.executable, str(script), name, str(path)], check=True, capture_output=True)
            made[name] = path
        return made[name]

    yield make
    for path in made.values():
        path.unlink()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing that torch.compile made for other tests, whose code it keeps by function and not by model."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
