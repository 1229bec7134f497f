"""Corpora by name: encoded once, then memory-mapped."""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ._cache import SPLITS, Encoded, cache_root, cached
from ._sources import FILES, Source, from_files, from_hub, from_python_docs
from .vocabulary import Level, Vocabulary, check_level, tokenize

CORPORA: dict[str, Level] = {
    "python-docs": "char",
    "ptb": "word",
    "wikitext-2": "word",
    "wikitext-103": "word",
    "text": "char",
}
_FORMAT = 2  # raise it when the same source would be encoded differently


@dataclass(frozen=True, eq=False)
class Corpus:
    """An encoded corpus. `train`, `valid` and `test` are int32 `(n,)`, read-only memory maps."""

    name: str
    level: Level
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the vocabulary and the three texts."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for split in SPLITS:
            digest.update(hashlib.sha256(np.ascontiguousarray(getattr(self, split)).data).digest())
        return digest.hexdigest()


def load_corpus(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    level: Level | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    max_vocabulary: int | None = None,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Loads a corpus, its vocabulary built from the training text alone.

    | name | text | files in `data_dir` | level |
    |---|---|---|---|
    | `python-docs` | the running Python's own documentation | takes none | char |
    | `ptb` | Penn Treebank, Mikolov's split | `ptb.train.txt`, `.valid.`, `.test.` | word |
    | `wikitext-2`, `wikitext-103` | WikiText, tokenised | `wiki.train.tokens`, ... | word |
    | `text` | yours | `train.txt`, `valid.txt`, `test.txt`, or one file split 90/5/5 | char |

    `data_dir` is the folder with the files, or its parent when the folder has the corpus's name;
    for `text` it may be the file itself. Without `data_dir`, PTB and WikiText come from the Hugging
    Face hub. WikiText-2 and -103 have the same file names: nothing but `data_dir` tells them apart.
    A last line without a line end gets one, and a byte order mark at the beginning is dropped.

    The arrays are cached in `cache_dir` (default: $DEQJAX_CACHE, or ~/.cache/deqjax) under a key
    made of the files' content, the level and `max_vocabulary` (the most frequent tokens to keep).
    A damaged cache is made again, and processes may race for it.

    `vocabulary` is one to use instead of the training text's own, such as that of a model which is
    to learn from another text; its level is then the default.

    Raises `ValueError` for an unknown name or level, and for a file that is empty or not UTF-8;
    `FileNotFoundError` when files are missing or the hub cannot be reached; `ImportError` when the
    package `datasets` is needed and not installed; `OSError` when the cache cannot be written.

    >>> corpus = load_corpus("python-docs")
    >>> corpus.train.dtype, len(corpus.vocabulary) < 100
    (dtype('int32'), True)
    """
    if name not in CORPORA:
        close = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(CORPORA)}"
        raise ValueError(f"no corpus {name!r}: {hint}")
    if vocabulary is not None:
        if max_vocabulary is not None or level not in (None, vocabulary.level):
            raise ValueError(
                f"the vocabulary that is given has {len(vocabulary)} tokens of level "
                f"{vocabulary.level!r}: leave max_vocabulary and level alone"
            )
        level = vocabulary.level
    level = CORPORA[name] if level is None else check_level(level)
    source = _source(name, data_dir)
    root = cache_root(cache_dir)
    identity = [_FORMAT, name, level, max_vocabulary, source.identity]
    identity += [] if vocabulary is None else [vocabulary.fingerprint]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def encode() -> Encoded:
        with source.open(root) as texts:
            used = vocabulary
            if used is None:
                used = Vocabulary.build(_tokens(texts["train"], level), level, max_vocabulary)
            encoded = {
                split: np.concatenate([used.encode(piece) for piece in texts[split]()])
                for split in SPLITS
            }
        return used, encoded

    used, arrays = cached(root / f"{name}-{level}-{key}", encode)
    return Corpus(name, level, used, **arrays)


def _source(name: str, data_dir: str | os.PathLike[str] | None) -> Source:
    if name == "python-docs":
        if data_dir is not None:
            raise ValueError("python-docs comes with Python and takes no data_dir")
        return from_python_docs()
    if data_dir is not None:
        return from_files(name, data_dir)
    if name == "text":
        wanted = ", ".join(FILES[name].format(split) for split in SPLITS)
        raise ValueError(f"corpus 'text' needs data_dir: a folder with {wanted}, or one text file")
    return from_hub(name)


def _tokens(pieces: Callable[[], Iterator[str]], level: Level) -> Iterator[str]:
    return chain.from_iterable(tokenize(piece, level) for piece in pieces())
