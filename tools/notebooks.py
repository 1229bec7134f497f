"""Run the notebooks: from each `notebooks/*.py` its `.ipynb`, with what it printed and drew.

    python tools/notebooks.py notebooks/01_first_fixed_point.py ...
    python tools/notebooks.py --text notebooks/*.py    # new text beside the same code: nothing runs

The scripts are the sources, in the percent format (`# %%` before a cell of code, `# %% [markdown]`
before one of text), which editors and jupytext open as notebooks. Needs
`pip install 'deqjax[notebook]' nbclient`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

LARGEST = 600_000  # bytes of an executed notebook
LONGEST = 20  # lines of a cell


def cells(source: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of each cell.

    Raises:
        ValueError: a cell of code is too long; what it does belongs into the library.
    """
    parts = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)[1:]
    found = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if "markdown" in kind:
            lines = (re.sub(r"^# ?", "", line) for line in text.strip().splitlines())
            found.append(("markdown", "\n".join(lines)))
            continue
        if (n := len(text.strip().splitlines())) > LONGEST:
            raise ValueError(f"a cell has {n} lines, more than {LONGEST}: {text.strip()[:60]!r}")
        found.append(("code", text.strip()))
    return found


def notebook(source: str):
    """The notebook of a script, not run."""
    import nbformat  # type: ignore[import-not-found]
    from nbformat import v4  # type: ignore[import-not-found]

    made = v4.new_notebook()
    made.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    for i, (kind, text) in enumerate(cells(source)):
        cell = v4.new_markdown_cell(text) if kind == "markdown" else v4.new_code_cell(text)
        cell.id = _name(i, text)
        made.cells.append(cell)
    nbformat.validate(made)
    return made


def run(path: Path) -> tuple[float, int]:
    """Execute a script's notebook beside it; the seconds it took and the bytes it has."""
    import nbformat  # type: ignore[import-not-found]
    from nbclient import NotebookClient  # type: ignore[import-not-found]

    made = notebook(path.read_text("utf-8"))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    began = time.monotonic()
    client = NotebookClient(made, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # times of day
    text = nbformat.writes(made) + "\n"
    path.with_suffix(".ipynb").write_text(text, "utf-8")
    return time.monotonic() - began, len(text.encode())


def retext(path: Path) -> tuple[float, int]:
    """Write a script's text beside the code that was run.

    Raises:
        ValueError: the code is another now.
    """
    written = json.loads(path.with_suffix(".ipynb").read_text("utf-8"))
    ran = [c for c in written["cells"] if c["cell_type"] == "code"]
    wanted = cells(path.read_text("utf-8"))
    if ["".join(c["source"]) for c in ran] != [text for kind, text in wanted if kind == "code"]:
        raise ValueError(f"{path} has other code than its notebook: run it")
    code = iter(ran)
    written["cells"] = [
        next(code) if kind == "code" else _words(i, text) for i, (kind, text) in enumerate(wanted)
    ]
    text = json.dumps(written, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.with_suffix(".ipynb").write_text(text, "utf-8")
    return 0.0, len(text.encode())


def _words(place: int, text: str) -> dict:
    source = text.splitlines(keepends=True)
    return dict(cell_type="markdown", id=_name(place, text), metadata={}, source=source)


def _name(place: int, text: str) -> str:
    """Of a cell, by its text, so that one that stays the same keeps it."""
    return hashlib.sha256(f"{place}{text}".encode()).hexdigest()[:8]


def main(arguments: list[str]) -> int:
    paths = [name for name in arguments if name != "--text"]
    for name in paths:
        seconds, size = (retext if "--text" in arguments else run)(Path(name))
        print(f"{name}: {seconds:.0f} s, {size / 1000:.0f} kB")
        if size > LARGEST:
            print(f"{name} is larger than {LARGEST / 1000:.0f} kB: draw less, or with fewer dots")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
