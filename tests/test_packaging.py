"""The wheel: what it holds, and that it works far from the source."""

import ast
import json
import re
import resource
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CI_COMMAND = (ROOT / ".ci/run").read_text().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source") / "detkit", tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel; other packages are borrowed from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A .pth line adds the folder without reading the .pth files in it, so an editable detkit there stays unseen.
    Path(target, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"detkit", "detkit-0.1.0.dist-info"}
    assert {"detkit/py.typed", "detkit/cli/__init__.py"} <= set(names)
    for path in [*ROOT.glob("detkit/**/*.py"), *ROOT.glob("cli/*.py"), *ROOT.glob("configs/*/*.*")]:
        inside = path.relative_to(ROOT).as_posix()
        assert inside in names or f"detkit/{inside}" in names, f"{inside} is not in the wheel"


@pytest.mark.slow
def test_the_installed_command_answers_at_once_from_anywhere(installed: Path, tmp_path: Path) -> None:
    command = [installed / "detkit", "--help"]
    seconds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time: that of the wall depends on what else runs.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "Usage: detkit" in result.stdout
    assert min(seconds) < 0.5


@pytest.mark.slow
def test_the_first_command_of_the_readme(installed: Path, tmp_path: Path) -> None:
    told = "detkit detect sample:astronaut"
    assert f"{told}\n" in (ROOT / "README.md").read_text()
    command = [installed / told.split()[0], *told.split()[1:]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 person" in result.stdout
    assert len(list((tmp_path / "runs/detect/1").iterdir())) == 1


def test_every_package_that_is_imported_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"run": declared["dependencies"], "dev": declared["optional-dependencies"]["dev"]}
    known = {kind: {re.split("[<>=]", line)[0] for line in lines} for kind, lines in names.items()}
    optional = {"pandas", "supervision"}  # asked for by name when they are wanted
    optional.add("triton")  # comes with PyTorch wherever it has kernels to compile
    providers = packages_distributions()
    for folder, allowed in (("detkit", known["run"]), ("cli", known["run"]), ("tests", known["run"] | known["dev"])):
        for path in (ROOT / folder).rglob("*.py"):
            for module in imported_modules(path) - sys.stdlib_module_names - {"detkit"} - optional:
                found = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
                assert found & allowed, f"{path} imports {module}, which pyproject.toml does not declare"


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.slow
def test_nothing_but_detkit_can_be_imported(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json, detkit; from detkit.config import shipped_configs\n"
        "names = [n for n in ('cli', 'configs', 'tools', 'tests') if importlib.util.find_spec(n)]\n"
        "print(json.dumps([detkit.__file__, names, sorted(shipped_configs())]))"
    )
    for python in (installed / "python", sys.executable):  # the wheel and the editable install
        result = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        file, names, configs = json.loads(result.stdout)
        assert names == []
        assert configs == sorted(path.stem for path in ROOT.glob("configs/*/*.yaml"))
        assert (str(ROOT) in file) == (python == sys.executable)


def test_the_readme_tells_the_commands_that_are_tested() -> None:
    assert CI_COMMAND in (ROOT / "README.md").read_text()
