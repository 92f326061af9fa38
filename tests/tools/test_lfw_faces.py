"""The faces of scikit-image become a data set that detkit reads."""

import subprocess
import sys
from pathlib import Path

from detkit.data.dataset import load_dataset

SCRIPT = Path(__file__).parents[2] / "tools" / "lfw_faces.py"


def test_crops_are_a_data_set(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, SCRIPT, tmp_path / "lfw"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for split, pictures, faces in (("train", 195, 80), ("val", 40, 20)):
        dataset = load_dataset(str(tmp_path / "lfw"), split)
        assert dataset.classes == ("face",)
        assert len(dataset) == pictures
        boxes = [sample.boxes.tolist() for sample in dataset.samples if len(sample.boxes)]
        assert boxes == [[[0, 0, 25, 25]]] * faces
    again = subprocess.run([sys.executable, SCRIPT, tmp_path / "lfw"], capture_output=True, text=True)
    assert again.returncode == 1
    assert "not empty" in again.stderr
