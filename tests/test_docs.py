"""The documentation is whole: every public name is in the reference, and links lead somewhere."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import deqjax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MODULES = {
    "deqjax": deqjax,
    **{
        name: importlib.import_module(f"deqjax.{name}")
        for name in (
            *("adjoints", "data", "diagnostics", "implicit", "nn", "nn.linen", "regularization"),
            *("solvers", "theory", "theory.monotone", "theory.universality", "theory.wellposed"),
            *("training", "training.hooks", "training.plan", "vectors"),
        )
    },
}


def found(path: str):
    """What stands behind a dotted name. A function is meant where a module has the same name."""
    parts = path.split(".")
    for cut in range(1, len(parts)):
        at = importlib.import_module(".".join(parts[:cut]))
        try:
            for part in parts[cut:]:
                at = getattr(at, part)
        except AttributeError:
            continue
        return at
    raise AttributeError(path)


def documented() -> list[str]:
    return re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)


def public(module) -> list[str]:
    """`__all__`, or else `import x as x` and what is defined at the top without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    names = []
    for node in ast.parse(Path(module.__file__).read_text("utf-8")).body:
        match node:
            case ast.ImportFrom():
                names += [a.name for a in node.names if a.asname == a.name]
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.append(name)
    return [name for name in names if not name.startswith("_") and name != "PyTree"]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name):
    module = MODULES[name]
    names = public(module)
    assert names
    known = [(path.split(".")[-1], found(path)) for path in documented()]
    missing = [
        n
        for n in names
        if not any(n == known_name and getattr(module, n) is what for known_name, what in known)
        and getattr(module, n) not in MODULES.values()
    ]
    assert not missing


def test_the_reference_names_nothing_twice():
    names = documented()
    assert len(names) > 200
    assert len({*names}) == len(names)


def test_the_reference_has_functions_and_not_their_modules():
    """Where both have one name, the longer one is the function's: `deqjax.data.copy_memory.…`."""
    files = [ROOT / "src" / f"{name.replace('.', '/')}.py" for name in documented()]
    assert not [file for file in files if file.exists()]


def links(page: Path) -> list[str]:
    """Where a page leads within the repository: of links and of pictures, code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in to]


def anchors(page: Path) -> set[str]:
    """Of the headings, as Python-Markdown makes them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    slugs = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        slugs.add(re.sub(r"[-\s]+", "-", plain))
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for to in links(page):
        file, _, anchor = to.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {file}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {to}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [p.name for p in PAGES if not re.search(rf": {p.name}\n", navigation)] == []


def test_every_ending_has_a_remedy():
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    endings = {s.name for s in deqjax.Status} - {"CONVERGED", "RUNNING"}
    assert {name for name in endings if f"`{name}`" not in page} == set()
