"""One import namespace from a checkout, an editable install and a wheel, from any working directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

import megalodon_tasks
from tests.runs.records import result, write_record

REPOSITORY = Path(__file__).resolve().parents[1]
SIBLINGS = ("models", "criterions", "cuda_ops", "recipes")
COPIED = ("megalodon_tasks", *SIBLINGS, "setup.py", "pyproject.toml", "README.md", "LICENSE")

# The installs are made once per worker: one worker runs the file.
pytestmark = pytest.mark.xdist_group("namespace")


@dataclass(frozen=True)
class Way:
    """One way to reach the project: an interpreter and the --user-dir."""

    python: Path
    user_dir: Path

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess:
        """Run the interpreter away from the checkout, without the path settings of this process."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
        return subprocess.run(
            [self.python, "-W", "ignore", *command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project, so that installing it leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(source, copy / name)
    return copy


def _environment(folder: Path) -> Path:
    """A virtual environment that sees the packages installed here, but not this project."""
    command = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(command, check=True, capture_output=True)
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    own = folder / Path(*Path(sysconfig.get_path("purelib")).relative_to(sys.prefix).parts)
    (own / "parent.pth").write_text("\n".join(packages) + "\n")
    return folder / "bin" / "python"


def _pip(python: Path, *arguments: str) -> None:
    command = [python, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def plain(checkout, tmp_path_factory) -> Way:
    python = _environment(tmp_path_factory.mktemp("plain"))
    return Way(python, checkout / "megalodon_tasks")


@pytest.fixture(scope="module")
def editable(checkout, tmp_path_factory) -> Way:
    python = _environment(tmp_path_factory.mktemp("editable"))
    _pip(python, "install", "--editable", str(checkout))
    return Way(python, checkout / "megalodon_tasks")


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Way:
    folder = tmp_path_factory.mktemp("wheel")
    python = _environment(folder / "venv")
    _pip(python, "wheel", "--wheel-dir", str(folder), str(checkout))
    (built,) = folder.glob("megalodon_tasks-*.whl")
    _pip(python, "install", str(built))
    where = python.parents[1] / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    return Way(python, where / "megalodon_tasks")


@pytest.fixture(params=["plain", "editable", "wheel"])
def way(request) -> Way:
    return request.getfixturevalue(request.param)


# Prints as JSON what a process sees that imports the --user-dir given as its argument.
INSPECT = """
import argparse, importlib, importlib.util, json, sys
from fairseq import utils
siblings = ("models", "criterions", "cuda_ops", "recipes")
leaks = [name for name in siblings if importlib.util.find_spec(name)]
utils.import_user_module(argparse.Namespace(user_dir=sys.argv[1]))
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
names = ["megalodon_tasks"] + ["megalodon_tasks." + name for name in siblings]
registries = {"archs": ARCH_MODEL_REGISTRY, "tasks": TASK_REGISTRY, "criterions": CRITERION_REGISTRY}
print(json.dumps({
    "files": {name: importlib.import_module(name).__file__ for name in names},
    "leaks": leaks,
} | {kind: {name: entry.__module__ for name, entry in registry.items()}
     for kind, registry in registries.items()}))
"""

# Imports what needs torch only, and calls it, with the other packages made impossible to import.
TORCH_ALONE = """
import importlib, pkgutil, sys
for name in ("fairseq", "fairseq_cli", "hydra", "omegaconf", "triton"):
    sys.modules[name] = None
for package in ("megalodon_tasks.cuda_ops", "megalodon_tasks.models"):
    folders = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(folders, package + "."):
        file = module.name.split(".")[-1]
        if not file.startswith(("triton_", "fairseq_")):
            importlib.import_module(module.name)
import torch
from megalodon_tasks.cuda_ops import timestep_norm
y, state = timestep_norm(torch.randn(2, 5, 4), torch.ones(4), torch.zeros(4), 2)
print(tuple(y.shape))
"""


def test_namespace_and_registries(way, tmp_path):
    done = way.run("-c", INSPECT, str(way.user_dir), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    found = {name: Path(file) for name, file in report["files"].items()}
    siblings = {f"megalodon_tasks.{n}": way.user_dir / n / "__init__.py" for n in SIBLINGS}
    assert found == {"megalodon_tasks": way.user_dir / "__init__.py"} | siblings
    # A generic name such as `models` in site-packages would shadow a user's own.
    assert report["leaks"] == []
    # fairseq keeps the first of two equal names and says nothing.
    ours = {k: v for k, v in report["archs"].items() if k.startswith("megalodon_")}
    assert {"megalodon_classifier", "megalodon_lra_listops"} <= set(ours)
    ours["lra_text"] = report["tasks"]["lra_text"]
    ours["classification"] = report["criterions"]["classification"]
    assert all(module.startswith("megalodon_tasks.") for module in ours.values()), ours


@pytest.mark.parametrize("pattern", ["*.yaml", "*.sh", "README.md"])
def test_wheel_holds_the_recipes(wheel, pattern):
    def below(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob(pattern)}

    assert below(REPOSITORY / "recipes")
    assert below(wheel.user_dir / "recipes") == below(REPOSITORY / "recipes")


def test_wheel_brings_the_command(wheel, tmp_path):
    script = wheel.python.with_name("megalodon")
    done = wheel.run(str(script), "--version", cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == [megalodon_tasks.__version__], done.stderr


def test_a_checkout_has_the_command(plain):
    done = plain.run("-m", "megalodon_tasks", "--version", cwd=plain.user_dir.parent)
    assert done.stdout.splitlines()[-1:] == [megalodon_tasks.__version__], done.stderr


def test_wheel_holds_the_templates_of_the_report(wheel, tmp_path):
    write_record(tmp_path / "run", [result()])
    done = wheel.run("-m", "megalodon_tasks", "report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in tmp_path.glob("run/report.*")} == {".html", ".md"}


@pytest.mark.parametrize("spelling", ["relative", "trailing slash", "link"])
def test_command_takes_any_spelling_of_user_dir(plain, tmp_path, spelling):
    link = tmp_path / "megalodon_tasks"
    link.symlink_to(plain.user_dir)
    user_dir = {
        "relative": os.path.relpath(plain.user_dir, tmp_path),
        "trailing slash": f"{plain.user_dir}/",
        "link": link.name,
    }[spelling]
    # The names are checked before the help is printed.
    names = ("--task", "lra_text", "--arch", "megalodon_lra_listops", "--help")
    done = plain.run("-m", "fairseq_cli.train", "--user-dir", user_dir, *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ops_and_models_need_torch_alone(wheel, tmp_path):
    done = wheel.run("-c", TORCH_ALONE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(2, 5, 4)"


def test_folder_copied_alone_says_what_is_missing(plain, tmp_path):
    shutil.copytree(plain.user_dir, tmp_path / "megalodon_tasks", symlinks=True)
    done = plain.run("-c", "import megalodon_tasks", cwd=tmp_path)
    assert "copied without its sibling folders" in done.stderr
