"""Every example that a reader can see runs: docstrings, README and the documentation pages."""

import doctest
import importlib
import io
import pkgutil
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import deqjax

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(deqjax.__path__, "deqjax."))
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
LONG = {
    *("docs/adjoints.md", "docs/diagnostics.md", "docs/first_deq.md", "docs/generate.md"),
    *("docs/neural_ode.md", "docs/own.md", "docs/pods.md", "docs/universality.md"),
    *("docs/coming_from.md", "docs/optnet.md", "docs/recipes.md", "docs/solvers.md"),
    *("docs/training.md", "docs/well_posed.md"),
    *("deqjax.implicit.ode", "deqjax.implicit.qp", "deqjax.nn.adaptive", "deqjax.nn.decoding"),
    *("deqjax.nn.implicit_dense", "deqjax.nn.lstm", "deqjax.nn.optnet", "deqjax.solvers.compose"),
    "deqjax.training.plan._plan",
}


def in_turn(names):
    """What takes more than a few seconds is slow."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in names]


@pytest.mark.parametrize("name", in_turn(MODULES))
def test_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs=vars(deqjax))
    assert not failed


@pytest.mark.parametrize("page", in_turn(PAGES))
def test_pages(page):
    """The python blocks of a page run in order; `# text` after a print is what it printed."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    names: dict = {}
    for block in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        promised = re.findall(r"^# (.*)$", block, re.MULTILINE)
        if "print(" in block and promised:
            assert promised[-1].split()[1:] == printed.getvalue().split()[1:]
