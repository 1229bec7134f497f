"""What CONTRIBUTING says of the project is so."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_folders_and_files_that_are_named_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(
        r"`((?:src|tests|docs|experiments|tools|solvers|adjoints|nn|data)/[^`]*)`", text
    )
    assert len(named) > 10
    for name in named:
        at = Path(re.sub(r"(test_)?<name>\.py.*", "", name.split(":")[0]))
        candidates = (ROOT / at, ROOT / "src" / "deqjax" / at)
        assert any(path.exists() for path in candidates), name


def test_what_the_package_depends_on_it_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {re.split(r"[^\w-]", name)[0] for name in project["dependencies"]}
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    assert needed and needed <= imported
