"""Each notebook runs from its plain-text pair, and the two hold the same code and text."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools/notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text("utf-8"))["cells"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_pair_agrees_and_was_executed(notebook, tool):
    """The tool also refuses a cell that is too long."""
    written = [(c["cell_type"], "".join(c["source"]).strip()) for c in cells(notebook)]
    assert written == tool.cells(notebook.with_suffix(".py").read_text("utf-8"))
    assert all(c["execution_count"] for c in cells(notebook) if c["cell_type"] == "code")
    outputs = [o for c in cells(notebook) for o in c.get("outputs", [])]
    assert not any(o["output_type"] == "error" for o in outputs)
    assert len(notebook.read_bytes()) < tool.LARGEST


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_begins_with_a_picture_and_ends_with_exercises(notebook):
    found = [
        any("image/png" in o.get("data", {}) for o in c.get("outputs", ())) for c in cells(notebook)
    ]
    assert found.index(True) <= 5 and sum(found) >= 2
    assert "## Exercise" in "".join(cells(notebook)[-1]["source"])


def test_each_is_on_the_page_of_notebooks():
    page = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == [p.stem for p in NOTEBOOKS]
    assert {p.stem for p in (ROOT / "notebooks").glob("*.py")} == {p.stem for p in NOTEBOOKS}


def test_new_text_beside_the_code_that_was_run(tool, tmp_path):
    script, notebook = tmp_path / "a.py", tmp_path / "a.ipynb"
    ran = dict(cell_type="code", source=["a = 1"], outputs=["kept"], execution_count=1)
    notebook.write_text(json.dumps({"cells": [ran], "nbformat": 4}), "utf-8")
    script.write_text("# %% [markdown]\n# new\n# words\n\n# %%\na = 1\n", "utf-8")
    assert tool.main(["--text", str(script)]) == 0
    text, code = cells(notebook)
    assert text["source"] == ["new\n", "words"] and code == ran
    script.write_text("# %%\na = 2\n", "utf-8")
    with pytest.raises(ValueError, match="other code than its notebook: run it"):
        tool.retext(script)


def test_a_script_is_cut_into_its_cells(tool):
    script = "# ---\n# %% [markdown]\n# # Title\n#\n# text\n\n\n# %%\na = 1\n\nb = 2\n"
    assert tool.cells(script) == [("markdown", "# Title\n\ntext"), ("code", "a = 1\n\nb = 2")]
    with pytest.raises(ValueError, match="a cell has 21 lines, more than 20: 'x0 = 0"):
        tool.cells("# %%\n" + "".join(f"x{i} = 0\n" for i in range(21)))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(notebook, tmp_path):
    environment = os.environ | {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(notebook.with_suffix(".py"))]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
