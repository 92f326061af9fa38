"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("detkit", deadline=None)  # the machine's speed is no property of the code
settings.load_profile("detkit")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures, weights and published answers."""
    folder = Path(os.environ.get("DETKIT_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} (set DETKIT_SHARED)")
    return folder
