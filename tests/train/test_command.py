import json
from pathlib import Path

import pytest
import typer
from detkit.cli.train import train_command
from typer.testing import CliRunner

from detkit.config import shipped_configs
from detkit.errors import DetkitError

app = typer.Typer()
app.command()(train_command)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_alone_it_says_what_it_needs_and_what_there_is() -> None:
    with pytest.raises(DetkitError, match=r"^CONFIG is missing") as told:
        run()
    header, title, *lines = str(told.value).replace("\n\n", "\n").splitlines()
    assert len(header) < 110
    assert title.endswith(":")
    begins = set()
    for line, (name, path) in zip(lines, shipped_configs().items(), strict=True):
        comment = path.read_text().splitlines()[0]
        assert comment.startswith("# ")
        assert line.split(maxsplit=1) == [name, comment.removeprefix("# ")]
        begins.add(line.index(comment.removeprefix("# ")))
    assert len(begins) == 1, "the comments stand in a column"


@pytest.mark.parametrize("arguments", [("yolov3_tiny_coco",), ("x", "--data", ""), ("--resume", "x", "--data", "")])
def test_without_data_there_is_nothing_to_learn(arguments: tuple[str, ...]) -> None:
    with pytest.raises(DetkitError, match=r"^--data is missing: .*--data PATH`$"):
        run(*arguments)


def test_a_run_that_goes_on_takes_nothing_of_a_new_one(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="--out belongs to a new run"):
        run("--resume", tmp_path, "--out", tmp_path)


def test_the_result_is_one_object(config: Path, data: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    printed = json.loads(run(config, "--data", data, "--out", folder, "--set", "train.epochs=1", "--json"))
    assert printed["folder"] == str(folder)
    assert (printed["epochs"], printed["stopped_early"]) == (1, False)
    assert printed["best"] == printed["last"]
    assert printed["last"]["epoch"] == 1
    assert 0 <= printed["last"]["AP"] <= 1
