"""Vocabularies: text to int32 ids and back, at word or at character level."""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

Level = Literal["word", "char"]
LEVELS: tuple[str, ...] = get_args(Level)

UNKNOWN = {"word": "<unk>", "char": "\ufffd"}
END_OF_LINE = "<eos>"
_FORMAT = "deqjax-vocabulary-1"


def check_level(level: str) -> Level:
    """Returns `level` if it is one of `LEVELS`; else raises a `ValueError` that lists them."""
    if level not in LEVELS:
        raise ValueError(f"level must be 'word' or 'char', got {level!r}")
    return cast(Level, level)


def tokenize(text: str, level: Level) -> Iterator[str]:
    r"""The tokens of `text`: whitespace-separated words and an `<eos>` for every `"\n"`, or its
    characters. `tokenize(a + b)` is `tokenize(a)` then `tokenize(b)` wherever no word is cut."""
    if level == "char":
        yield from text
        return
    lines = text.split("\n")
    for line in lines[:-1]:
        yield from line.split()
        yield END_OF_LINE
    yield from lines[-1].split()


@dataclass(frozen=True)
class Vocabulary:
    r"""An ordered set of tokens; a token's id is its place in `tokens`.

    `level="word"`: words are separated by whitespace and every line end is the token `eos`.
    `level="char"`: every character is a token, the newline included; `eos` is None.
    `unk` stands for tokens that are not in the vocabulary; with `unk=None`, one is an error.

    Raises `ValueError` for an unknown level, repeated tokens, or an `eos` or `unk` not in `tokens`.

    >>> vocabulary = Vocabulary.build("the cat\nthe dog\n", "word")
    >>> vocabulary.tokens
    ('<eos>', 'the', 'cat', 'dog', '<unk>')
    >>> vocabulary.encode("the bird\n")
    array([1, 4, 0], dtype=int32)
    >>> vocabulary.decode([1, 2, 0])
    'the cat\n'
    """

    tokens: tuple[str, ...]
    level: Level
    unk: str | None = None
    eos: str | None = None

    def __post_init__(self) -> None:
        check_level(self.level)
        if len(self._ids) != len(self.tokens):
            repeated = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"the tokens of a vocabulary must differ, got {repeated!r} twice")
        for role, token in (("unk", self.unk), ("eos", self.eos)):
            if token is not None and token not in self._ids:
                raise ValueError(f"{role}={token!r} is not among the {len(self)} tokens")
        if self.level == "word" and self.eos is None:
            raise ValueError("a word vocabulary needs eos, the token that stands for a line end")

    @classmethod
    def build(
        cls, text_or_tokens: str | Iterable[str], level: Level, max_size: int | None = None
    ) -> "Vocabulary":
        """The vocabulary of a text (a `str`) or of tokens (any iterable of `str`).

        Ids follow falling frequency (ties in code-point order), which is the order that adaptive
        softmax and frequency cut-offs need. `max_size` keeps the most frequent tokens; the line end
        and the unknown token always stay, added last with count 0 where the text has none.

        Raises `ValueError` for a `max_size` below 2 and an unknown level.
        """
        check_level(level)
        if max_size is not None and max_size < 2:
            raise ValueError(f"max_size must be at least 2 (line end and unknown), got {max_size}")
        is_text = isinstance(text_or_tokens, str)
        counts = Counter(tokenize(text_or_tokens, level) if is_text else text_or_tokens)
        kept = (END_OF_LINE if level == "word" else "\n", UNKNOWN[level])
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        missing = [token for token in kept if token not in counts]
        if max_size is not None:
            cut = set([token for token in ranked if token not in kept][max_size - len(kept) :])
            ranked = [token for token in ranked if token not in cut]
        eos = END_OF_LINE if level == "word" else None
        return cls((*ranked, *missing), level, unk=UNKNOWN[level], eos=eos)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def start_id(self) -> int:
        """The id to put in front of a stream: the line end (`eos`, or newline for characters).

        Raises `ValueError` for a character vocabulary without a newline."""
        token = "\n" if self.eos is None else self.eos
        if token not in self._ids:
            raise ValueError("this vocabulary has no newline, so a stream needs its own start_id")
        return self._ids[token]

    def encode(self, text: str) -> np.ndarray:
        """The ids of the tokens of `text`, int32 `(n,)`; `n` may be 0.

        Raises `ValueError` for an unknown token when the vocabulary has no `unk`."""
        get, tokens = self._ids.get, tokenize(text, self.level)
        unknown = -1 if self.unk is None else self._ids[self.unk]
        ids = np.fromiter((get(token, unknown) for token in tokens), np.int32)
        if unknown < 0 and (ids < 0).any():
            token = next(t for t in tokenize(text, self.level) if t not in self._ids)
            raise ValueError(f"{token!r} is not in the vocabulary, which has no unknown token")
        return ids

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of `ids`. Words are joined by single spaces and `eos` gives a line end, so word
        level gives the text back up to its whitespace; character level gives it back exactly.

        Raises `ValueError` for an id outside `0 <= id < len(self)`."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"id {i} is outside this vocabulary of {len(self)} tokens")
        words = [self.tokens[i] for i in ids]
        if self.level == "char":
            return "".join(words)
        lines: list[list[str]] = [[]]
        for word in words:
            if word == self.eos:
                lines.append([])
            else:
                lines[-1].append(word)
        return "\n".join(" ".join(line) for line in lines)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the content: equal for equal vocabularies, and only then."""
        content = [self.level, self.unk, self.eos, self.tokens]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON to `path` in one step: a reader sees the old file or the new one."""
        path = Path(path)
        content = {"format": _FORMAT, "level": self.level, "unk": self.unk, "eos": self.eos}
        content |= {"tokens": self.tokens, "fingerprint": self.fingerprint}
        # Opened like any file, and not by `tempfile`: colleagues read what the umask lets them.
        temporary = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "x", encoding="ascii") as file:
                json.dump(content, file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises `FileNotFoundError` without such a file, and a `ValueError` naming the file when its
        content is not a whole, unchanged vocabulary."""
        try:
            content = json.loads(Path(path).read_text(encoding="ascii"))
            if content["format"] != _FORMAT:
                raise ValueError("its format is not known to this version")
            tokens = content["tokens"]
            if not all(isinstance(token, str) for token in tokens):
                raise ValueError("its tokens are not all strings")
            vocabulary = cls(tuple(tokens), content["level"], content["unk"], content["eos"])
            if vocabulary.fingerprint != content["fingerprint"]:
                raise ValueError("its content does not match its fingerprint")
        except (ValueError, KeyError, TypeError) as error:
            message = f"{os.fspath(path)} is not a vocabulary written by Vocabulary.save ({error})"
            raise ValueError(message) from error
        return vocabulary
