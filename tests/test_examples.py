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
LONG = ("docs/adjoints.md", "docs/diagnostics.md", "docs/first_deq.md", "docs/generate.md")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs=vars(deqjax))
    assert not failed


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p in LONG)) for p in PAGES]
)
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
