"""What `make` does before anything else: an environment that fits, or a new one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("venv_tool", ROOT / "tools" / "venv.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["venv_tool"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["venv_tool"]


@pytest.fixture
def project(tmp_path):
    """A folder as `make` finds it, and what stands in for installers there."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[build-system]\nrequires = []\n[tool.hatch]\na = 1\n'
    )
    (tmp_path / "constraints.txt").write_text("jax==0.10\n")
    return tmp_path


@pytest.fixture
def venv(tool, project, monkeypatch):
    """Its environment, where commands that make or fill one only say so."""
    said = []

    def run(*words):
        said.append(words)
        if "venv" in words:
            python = project / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text("#!/bin/sh\n")
            python.chmod(0o755)
        return "fails" not in words

    monkeypatch.setattr(tool, "_run", run)
    found = tool.Venv(project)
    return found, said


def test_an_install_holds_for_its_extras_and_for_fewer(venv):
    one, said = venv
    assert not one.ready("dev") and one.install("dev,experiments", "")
    assert one.ready("dev") and one.ready("dev,experiments") and not one.ready("docs")
    assert said[-1][1:3] == ("-m", "pip") and said[-1][-1] == ".[dev,experiments]"
    assert one.install("docs", "uv") and one.ready("docs") and one.ready("dev")
    assert said[-1][:3] == ("uv", "pip", "install")
    assert sum("venv" in words for words in said) == 1  # made once


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "constraints.txt").write_text("jax==0.11\n"),
        lambda root: (root / "pyproject.toml").write_text(
            '[project]\nname = "y"\n[build-system]\nrequires = []\n[tool.hatch]\na = 1\n'
        ),
        lambda root: (root / ".venv" / ".made-for").write_text("another interpreter"),
        lambda root: (root / ".venv" / ".installing").touch(),
        lambda root: (root / ".venv" / "bin" / "python").unlink(),
    ],
    ids=["pins", "project", "interpreter", "cut off", "no python"],
)
def test_what_no_longer_fits_is_not_ready(venv, change):
    one, _ = venv
    assert one.install("dev", "") and one.ready("dev")
    change(one.folder)
    assert not one.ready("dev")
    assert one.install("dev", "") and one.ready("dev")


def test_a_failed_install_is_not_taken_for_one(venv, tool, monkeypatch):
    one, _ = venv
    works = tool._run
    monkeypatch.setattr(tool, "_run", lambda *words: "install" not in words and works(*words))
    assert not one.install("dev", "") and not one.ready("dev") and not one.sound()


def test_the_command_runs_with_its_words(tool, project):
    """The whole program, on an environment that is ready."""
    venv = tool.Venv(project)
    python = Path(venv.python)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    venv.owner.write_text(venv.made_for())
    (venv.path / ".installed-dev").write_text(venv.digest("dev"))
    words = [sys.executable, str(ROOT / "tools" / "venv.py"), "", "dev", "-c", "print('it ran')"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "it ran"
