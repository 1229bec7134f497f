# pyright: reportMissingImports=false
# (mkdocs and what it needs come with the extra docs)
"""A hook of mkdocs: recorded results and notebooks are pages of the site.

They stay where they are in the repository, and so do links to them: a page says
`../experiments/results/parity.md`, which a file browser follows, and the site has `results/parity`.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, NOTEBOOKS = ROOT / "experiments" / "results", ROOT / "notebooks"


def on_config(config: Any) -> None:
    """Both have their sections in the navigation, before the reference."""
    records = [{title: _name(path, RESULTS, "results")} for title, path in titles().items()]
    results = ["results/index.md", *records]
    notebooks = sorted(f"notebooks/{p.stem}.md" for p in NOTEBOOKS.glob("*.ipynb"))
    config.nav[-1:-1] = [{"Notebooks": notebooks}, {"Results": results}]


def on_files(files: Any, config: Any) -> None:
    from mkdocs.structure.files import File

    add = lambda name, **source: files.append(File.generated(config, name, **source))
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix == ".png" or path in titles().values():
            add(_name(path, RESULTS, "results"), abs_src_path=str(path))
    add("results/index.md", content=contents())
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page, pictures = as_markdown(path.read_text("utf-8"), path.stem)
        add(f"notebooks/{path.stem}.md", content=page)
        add(f"notebooks/{path.name}", abs_src_path=str(path))
        for name, picture in pictures.items():
            add(f"notebooks/{name}", content=picture)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    up = "../" * page.file.src_uri.count("/")
    return linked(markdown, up)


def linked(markdown: str, up: str = "") -> str:
    """Links to files of the repository as links to pages of the site.

    Args:
        up: from the page to the root of the site.

    Examples:
        >>> linked("[parity](../experiments/results/parity.md), [one](../notebooks/one.ipynb)")
        '[parity](results/parity.md), [one](notebooks/one.md)'
        >>> linked("[memory](../docs/neural_ode.md#cost)", "../")
        '[memory](../neural_ode.md#cost)'
    """
    markdown = re.sub(r"\]\((?:\.\./)+experiments/results/\)", f"]({up}results/index.md)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+experiments/results/", f"]({up}results/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({up}", markdown)
    return re.sub(r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb\)", rf"]({up}notebooks/\1.md)", markdown)


def as_markdown(notebook: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook with what its cells have printed and drawn, and its pictures by their names.

    Args:
        notebook: the text of an .ipynb file.
        stem: its name, without the ending.
    """
    parts, pictures = [], {}
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{_alternative(data)}]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    heading, _, rest = parts[0].partition("\n")
    parts[:1] = [heading, f"[The notebook]({stem}.ipynb), to download and to run.", rest.strip()]
    return "\n\n".join(part for part in parts if part.strip()) + "\n", pictures


def _alternative(data: dict[str, Any]) -> str:
    """What stands for a picture that cannot be seen."""
    return re.sub(r"[\[\]<>\n]", "", "".join(data.get("text/plain", "a picture")))


def _name(path: Path, under: Path, section: str) -> str:
    return f"{section}/{path.relative_to(under).as_posix()}"


def contents() -> str:
    """The page that leads to all records."""
    lines = ["# Results\n", "What the experiments have recorded, with the commands that did it.\n"]
    records = titles().items()
    lines += [f"- [{title}]({path.relative_to(RESULTS).as_posix()})" for title, path in records]
    return "\n".join(lines) + "\n"


def titles() -> dict[str, Path]:
    """The records by their headings; those of the same heading have their names beside it."""
    # notes.md is a part of the README.md beside it.
    paths = sorted(path for path in RESULTS.rglob("*.md") if path.name != "notes.md")
    headings = [path.read_text("utf-8").partition("\n")[0].removeprefix("# ") for path in paths]
    found = {}
    for heading, path in zip(headings, paths, strict=True):
        name = path.relative_to(RESULTS).as_posix().removesuffix("README.md")
        found[heading if headings.count(heading) == 1 else f"{heading} ({name})"] = path
    return found
