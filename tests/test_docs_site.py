"""What the site makes of formulas, recorded results and notebooks."""

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages():
    return tool("pages")


@pytest.mark.parametrize(
    ("up", "written", "read"),
    [
        ("", "[a](../experiments/results/parity.md)", "[a](results/parity.md)"),
        ("", "![a](../experiments/results/sudoku/clues.png)", "![a](results/sudoku/clues.png)"),
        ("", "[a](../notebooks/02_convergence.ipynb)", "[a](notebooks/02_convergence.md)"),
        ("", "[a](../experiments/results/)", "[a](results/index.md)"),
        ("../", "[a](../docs/pods.md#gke)", "[a](../pods.md#gke)"),
        ("../", "[a](../experiments/results/parity.md)", "[a](../results/parity.md)"),
        ("../../", "[a](../../../docs/pods.md)", "[a](../../pods.md)"),
        ("", "[a](solvers.md) and `notebooks/a.ipynb`", "[a](solvers.md) and `notebooks/a.ipynb`"),
    ],
)
def test_links_of_the_repository_are_links_of_the_site(pages, up, written, read):
    assert pages.linked(written, up) == read


def test_a_notebook_becomes_a_page(pages):
    picture = b"\x89PNG of a curve"
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {
                    "output_type": "display_data",
                    "data": {
                        "image/png": base64.b64encode(picture).decode(),
                        "text/plain": ["<Figure size 640x480 with 1 Axes>"],
                    },
                },
                {"output_type": "execute_result", "data": {"text/plain": ["(4, 4)"]}},
            ],
        },
    ]
    page, pictures = pages.as_markdown(json.dumps({"cells": cells}), "one")
    assert page.split("\n\n") == [
        "# Title",
        "[The notebook](one.ipynb), to download and to run.",
        "Text.",
        "```python\nprint(1)\n```",
        "```text\n1\n```",
        "![Figure size 640x480 with 1 Axes](one-1.png)",
        "```text\n(4, 4)\n```\n",
    ]
    assert pictures == {"one-1.png": picture}


def test_every_record_and_notebook_has_a_place(pages):
    config = SimpleNamespace(nav=[{"Start": []}, {"Reference": []}])
    pages.on_config(config)
    start, notebooks, results, reference = (section for [section] in map(list, config.nav))
    assert (start, notebooks, results, reference) == ("Start", "Notebooks", "Results", "Reference")
    first, *others = config.nav[2]["Results"]
    listed = {name for entry in others for name in entry.values()}
    records = ROOT / "experiments" / "results"
    assert first == "results/index.md" and len(listed) == len(others)
    assert {"results/parity.md", "results/sudoku/README.md"} <= listed
    assert all((records / name.removeprefix("results/")).exists() for name in listed)
    assert "](sudoku/README.md)" in pages.contents()
    assert len(config.nav[1]["Notebooks"]) == len([*(ROOT / "notebooks").glob("*.ipynb")])


def test_formulas_are_mathml():
    pytest.importorskip("latex2mathml")
    page = r'<p><span class="arithmatex">\(x &lt; J^\top u\)</span></p>'
    page += '\n<div class="arithmatex">\\[\nu = v\n\\]</div>'
    made = tool("mathml").in_mathml(page)
    assert made.startswith("<p><math ") and made.count("<math ") == 2
    assert 'display="inline"' in made and 'display="block"' in made
    assert "<mi>J</mi>" in made and "arithmatex" not in made and "&#x0003C;" in made


def test_flags_stay_whole():
    page = "<code>--max-gain 10</code> <code>f(z) - z</code> <code>--help</code>"
    made = tool("whole_flags").on_page_content(page)
    assert made.count('<code class="flag">--') == 2 and "<code>f(z) - z</code>" in made
