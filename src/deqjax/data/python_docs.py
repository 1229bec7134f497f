"""Real text that every CPython carries: its own language reference, or its docstrings."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Literal

REPLACEMENT = "\ufffd"
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\t": "    "}
)
_OTHER = re.compile(r"[^\n -~\ufffd]")
_HELDOUT_LENGTH = 40
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


def normalize(text: str) -> str:
    """`text` in newline, printable ASCII and U+FFFD, so in 97 characters at most. Typographic
    quotes, dashes, dots and tabs become ASCII, every other character becomes U+FFFD, and spaces at
    line ends go."""
    text = _OTHER.sub(REPLACEMENT, text.translate(_TYPOGRAPHY))
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def reference_topics() -> dict[str, str]:
    """The topics of Python's language reference, as `help()` shows them: name to text.

    Raises `ImportError` where a distribution left `pydoc_data` out."""
    from pydoc_data.topics import topics

    return dict(topics)


def docstring_topics() -> dict[str, str]:
    """The docstrings of the standard library: module name to its docstrings, in a fixed order.

    Sources are parsed and never imported. Raises `FileNotFoundError` without sources."""
    root = Path(sysconfig.get_path("stdlib"))
    topics = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            text = "\n\n".join(_docstrings(path))
            if text:
                topics[".".join(parts)] = text
    if not topics:
        raise FileNotFoundError(f"this Python has neither pydoc_data nor library sources in {root}")
    return topics


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in library sources are not our concern
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and (docstring := cleandoc(docstring)):
                yield docstring


def split_topics(topics: Mapping[str, str]) -> dict[str, str]:
    """Splits topics (name to text) into "train", "valid" and "test" texts.

    Topics are sorted by name; of every ten, the first goes to valid and the sixth to test, so that
    held-out text is of the same kind. Topics quote each other at length: a paragraph (40
    characters or more, whitespace aside) that stands in valid is removed from test and train, and
    one that stands in test from train, so no held-out paragraph can be learnt by heart.
    """
    names = sorted(topics)
    heldout: set[str] = set()
    texts = {}
    for split, chosen in (
        ("valid", names[::10]),
        ("test", names[5::10]),
        ("train", [name for i, name in enumerate(names) if i % 10 not in (0, 5)]),
    ):
        paragraphs = [p for name in chosen for p in re.split(r"\n\s*\n", normalize(topics[name]))]
        keys = [" ".join(p.split()) for p in paragraphs]
        kept = [
            p.strip("\n") for p, key in zip(paragraphs, keys, strict=True) if key not in heldout
        ]
        texts[split] = "\n\n".join(p for p in kept if p) + "\n"
        heldout |= {key for key in keys if len(key) >= _HELDOUT_LENGTH}
    return {split: texts[split] for split in ("train", "valid", "test")}


def python_docs(source: Literal["auto", "reference", "docstrings"] = "auto") -> dict[str, str]:
    """Texts "train", "valid" and "test" from this Python's own documentation, some 430,000
    characters of it for the language reference, over an alphabet of at most 97.

    "auto" takes the language reference and, in a distribution without it, the docstrings of the
    standard library. The text is the same on every run of one Python version, and differs a little
    between versions: compare numbers on one version only.

    Raises `ImportError` or `FileNotFoundError` when the source asked for is not installed, and
    `ValueError` for an unknown one.

    >>> texts = python_docs()
    >>> sorted(texts), len(texts["train"]) > 200_000
    (['test', 'train', 'valid'], True)
    """
    if source not in ("auto", "reference", "docstrings"):
        raise ValueError(f"source must be 'auto', 'reference' or 'docstrings', got {source!r}")
    if source != "docstrings":
        try:
            return split_topics(reference_topics())
        except ImportError:
            if source == "reference":
                raise
    return split_topics(docstring_topics())
