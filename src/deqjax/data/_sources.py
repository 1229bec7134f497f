"""Where the text of a corpus comes from: local files, the Hugging Face hub, or Python itself."""

import codecs
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ._cache import SPLITS
from .python_docs import python_docs

FILES = {
    "ptb": "ptb.{}.txt",
    "wikitext-2": "wiki.{}.tokens",
    "wikitext-103": "wiki.{}.tokens",
    "text": "{}.txt",
}
# For PTB, the hub's own Parquet conversion: the repository itself is a script, which we never run.
HUB: dict[str, dict[str, Any]] = {
    "ptb": {
        "path": "ptb-text-only/ptb_text_only",
        "revision": "refs/convert/parquet",
        "data_files": {
            split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")
        },
    },
    "wikitext-2": {"path": "Salesforce/wikitext", "name": "wikitext-2-v1"},
    "wikitext-103": {"path": "Salesforce/wikitext", "name": "wikitext-103-v1"},
}
_ROWS = 10_000
_BYTE_ORDER_MARK = "\ufeff"  # with which some editors begin a file; it is no letter of the text

Texts = Mapping[
    str, Callable[[], Iterator[str]]
]  # per split: a fresh pass over pieces of whole lines


@dataclass(frozen=True)
class Source:
    """`identity` says which text this is and is JSON; `open(root)` gives the text of each split,
    keeping what it needs meanwhile under the folder `root`."""

    identity: Any
    open: Callable[[Path], AbstractContextManager[Texts]]


def from_python_docs() -> Source:
    """The documentation of the running Python."""
    texts = python_docs()
    sums = {split: hashlib.sha256(texts[split].encode()).hexdigest() for split in SPLITS}

    @contextmanager
    def open_(root: Path) -> Iterator[Texts]:
        yield {split: lambda text=texts[split]: iter([text]) for split in SPLITS}

    return Source(sums, open_)


def from_files(name: str, data_dir: str | os.PathLike[str]) -> Source:
    """The files of corpus `name` in `data_dir`, read as lines by `datasets`.

    Raises `FileNotFoundError` for a missing file and `ValueError` for an empty or undecodable one,
    each naming it."""
    files = _find(name, Path(data_dir).expanduser())
    identity = {split: _check_text(path) for split, path in files.items()}

    @contextmanager
    def open_(root: Path) -> Iterator[Texts]:
        datasets = _datasets()
        show = not datasets.are_progress_bars_disabled()
        # The tables live only while they are encoded; a mapped file may outlast its name.
        with tempfile.TemporaryDirectory(
            dir=root, prefix="reading-", ignore_cleanup_errors=True
        ) as scratch:
            datasets.disable_progress_bars()
            try:
                tables = datasets.load_dataset(
                    "text",
                    data_files={split: [glob.escape(str(path))] for split, path in files.items()},
                    keep_linebreaks=True,
                    cache_dir=scratch,
                )
            finally:
                if show:
                    datasets.enable_progress_bars()
            if "whole" in files:
                yield _cut("".join(_lines(tables["whole"])), files["whole"])
            else:
                yield {split: lambda table=tables[split]: _lines(table) for split in SPLITS}

    return Source(identity, open_)


def from_hub(name: str) -> Source:
    """Corpus `name` from the Hugging Face hub. Opening raises `FileNotFoundError`, saying which
    files to put where, when the hub does not give it."""

    @contextmanager
    def open_(root: Path) -> Iterator[Texts]:
        try:
            tables = _datasets().load_dataset(**HUB[name], cache_dir=str(root / "hub"))
            train, valid, test = (tables[split] for split in ("train", "validation", "test"))
        except ImportError:
            raise
        except Exception as error:  # the hub, its client and the network fail in many ways
            wanted = ", ".join(FILES[name].format(split) for split in SPLITS)
            raise FileNotFoundError(
                f"{name} could not be had from the Hugging Face hub ({type(error).__name__}): put "
                f"{wanted} in one folder and name it with --data-dir (data_dir=...)"
            ) from error
        named = {"train": train, "valid": valid, "test": test}
        yield {split: lambda table=table: _lines(table) for split, table in named.items()}

    return Source(HUB[name], open_)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "reading this corpus needs the package datasets: pip install 'deqjax[experiments]'"
        ) from error
    return datasets


def _find(name: str, folder: Path) -> dict[str, Path]:
    """The three files of a corpus, in `folder` or in its subfolder `name`; or {"whole": file}."""
    if name == "text" and folder.is_file():
        return {"whole": folder}
    names = {split: FILES[name].format(split) for split in SPLITS}
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: {_wanted(name)}")
    for place in (folder, folder / name):
        missing = [file for file in names.values() if not (place / file).is_file()]
        if not missing:
            return {split: place / file for split, file in names.items()}
        if len(missing) < len(names):
            raise FileNotFoundError(f"{place / missing[0]} is missing: {_wanted(name)}")
    single = sorted(folder.glob("*.txt"))
    if name == "text" and len(single) == 1:
        return {"whole": single[0]}
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise FileNotFoundError(
        f"{folder / names['train']} is missing: {_wanted(name)}; the folder has {found}"
    )


def _wanted(name: str) -> str:
    files = ", ".join(FILES[name].format(split) for split in SPLITS)
    single = ", or a single .txt file" if name == "text" else ""
    return f"the data of {name!r} is a folder with {files}{single}"


def _check_text(path: Path) -> dict[str, str | int]:
    """Size and sha256 of a text file, which must be UTF-8 and more than whitespace."""
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    size, blank = 0, True
    with open(path, "rb") as file:
        while True:
            block = file.read(1 << 20)
            held = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text (first at byte {size - held + error.start}): "
                    "save it as UTF-8"
                ) from error
            if not block:
                break
            digest.update(block)
            size += len(block)
            blank = blank and not text.removeprefix(_BYTE_ORDER_MARK).strip()
    if blank:
        raise ValueError(f"{path} is empty: it should hold UTF-8 text")
    return {"bytes": size, "sha256": digest.hexdigest()}


def _lines(table: Any) -> Iterator[str]:
    """A table's rows as text, many lines a piece. A row is a line, an empty one included, and a
    row without its line end (the hub's, or a file's last) gets one. A byte order mark before the
    first is dropped."""
    column, mark = table.column_names[0], _BYTE_ORDER_MARK
    for rows in table.iter(batch_size=_ROWS):
        text = "".join(row if row.endswith("\n") else row + "\n" for row in rows[column])
        yield text.removeprefix(mark)
        mark = ""


def _cut(text: str, path: Path) -> Texts:
    """Cuts a text 90/5/5, at the next line end, or blank where lines are very long."""
    edges = [0]
    for percent in (90, 95):
        at = max(len(text) * percent // 100, 1)
        ends = (text.find(mark, at - 1, at + len(text) // 40) for mark in ("\n", " "))
        edges.append(next((end + 1 for end in ends if end >= 0), at))
    edges.append(len(text))
    pieces = {split: text[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}
    if not all(piece.strip() for piece in pieces.values()):
        raise ValueError(f"{path} has too little text to split 90/5/5: {len(text)} characters")
    return {split: lambda piece=piece: iter([piece]) for split, piece in pieces.items()}
