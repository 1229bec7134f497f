"""What CONTRIBUTING says of the project is so."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_folders_and_files_that_are_named_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(
        r"`((?:src|tests|docs|experiments|tools|solvers|adjoints|nn|data)/[^`]*)`", text
    )
    assert len(named) > 10
    for name in named:
        at = Path(re.sub(r"<name>\.py.*", "", name.split(":")[0]))
        candidates = (ROOT / at, ROOT / "src" / "deqjax" / at)
        assert any(path.exists() for path in candidates), name
