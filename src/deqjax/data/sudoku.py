"""Sudoku boards from CSV files, held-out boards and held-out solutions, one-hot tensors."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIZES = (4, 9)


class Boards(NamedTuple):
    """Puzzles and their solutions, uint8 (count, n, n): digits from 1 to n, and 0 where a puzzle is
    empty.

    Examples:
        >>> solution = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]], np.uint8)
        >>> boards = Boards(np.where(np.eye(4), solution, 0)[None], solution[None])
        >>> boards.size, boards.clues
        (4, array([4]))
    """

    puzzles: np.ndarray
    solutions: np.ndarray

    @property
    def size(self) -> int:
        """n, digits and cells of a row."""
        return self.puzzles.shape[-1]

    @property
    def clues(self) -> np.ndarray:
        """How many cells each puzzle gives, (count,)."""
        return np.count_nonzero(self.puzzles, axis=(1, 2))

    def rows(self, which: Any) -> Boards:
        """Those boards, `which` being any index of NumPy's."""
        return Boards(self.puzzles[which], self.solutions[which])


class Split(NamedTuple):
    """Boards to train on, and boards that are held out."""

    train: Boards
    test: Boards


def load_sudoku(data_dir: str | os.PathLike[str], size: int) -> Boards:
    """Reads the boards of a CSV file, in its order, repeated ones included.

    The file has a line of names and then two columns of size² digits, puzzle and solution, row by
    row, with 0 for an empty cell: the form of OptNet's 4×4 set (10,000 boards of 288 solutions) and
    of the 9×9 sets on Kaggle. What is read is checked: digits, clues that agree with the solution,
    solutions that are solutions.

    Args:
        data_dir: the file, the folder that holds it as its only `.csv`, or that folder's parent
            where the folder is called `sudoku-4x4` or `sudoku-9x9`.
        size: 4 or 9.

    Raises:
        FileNotFoundError: no such file, or several.
        ValueError: another size, or a line that is no board; the message has its number.
    """
    block(size)
    path = _file(Path(data_dir), size)
    cells = size * size
    found: list[tuple[str, str]] = []
    with open(path, newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            if number > 1:
                found.append(_pair(line, cells, f"line {number} of {path}"))
    if not found:
        raise ValueError(f"{path} has no boards below its line of names")
    text = "".join(puzzle + solution for puzzle, solution in found)
    digits = np.frombuffer(text.encode(), np.uint8).reshape(-1, 2, size, size) - ord("0")
    boards = Boards(digits[:, 0].copy(), digits[:, 1].copy())
    for says, right in (
        ("a puzzle with a digit above its size", (boards.puzzles <= size).all((1, 2))),
        ("a solution that breaks the rules", is_solution(boards.solutions)),
        ("a puzzle that its solution does not agree with", agrees(boards)),
    ):
        if not right.all():
            raise ValueError(f"line {np.argmin(right) + 2} of {path} has {says}")
    return boards


def block(size: int) -> int:
    """The side of a board's blocks, √size. Raises `ValueError` for a size other than 4 and 9.

    >>> block(9)
    3
    """
    if size not in SIZES:
        raise ValueError(f"a board's size is 4 or 9, got {size!r}")
    return math.isqrt(size)


def is_solution(boards: np.ndarray) -> np.ndarray:
    """Whether each board, (count, n, n), has every digit once in every row, column and block.

    >>> is_solution(np.ones((1, 4, 4), int)).tolist()
    [False]
    """
    n = boards.shape[-1]
    b = block(n)
    blocks = boards.reshape(-1, b, b, b, b).swapaxes(2, 3).reshape(-1, n, n)
    wanted = np.arange(1, n + 1)
    right = [
        (np.sort(groups, axis=-1) == wanted).all((1, 2))
        for groups in (boards, boards.swapaxes(1, 2), blocks)
    ]
    return np.logical_and.reduce(right)


def agrees(boards: Boards) -> np.ndarray:
    """Whether each puzzle's clues stand in its solution, (count,)."""
    return ((boards.puzzles == 0) | (boards.puzzles == boards.solutions)).all((1, 2))


def split_boards(boards: Boards, held_out: int = 1000) -> Split:
    """The last `held_out` distinct puzzles to test on, the other distinct puzzles to train on.

    No puzzle is in both, however often it was repeated. Solutions may be: a 4×4 board has only 288
    of them. To test on new ones, take `split_by_solution`.

    Raises:
        ValueError: fewer than `held_out` + 1 distinct puzzles.
    """
    # Numbers of the last occurrence of every puzzle, in the order of the file.
    puzzles = boards.puzzles[::-1].reshape(len(boards.puzzles), -1)
    last = np.sort(len(puzzles) - 1 - np.unique(puzzles, axis=0, return_index=True)[1])
    if not 1 <= held_out < len(last):
        raise ValueError(
            f"held_out must be from 1 to {len(last) - 1}, one less than there are distinct puzzles;"
            f" got {held_out}"
        )
    return Split(boards.rows(last[:-held_out]), boards.rows(last[-held_out:]))


def split_by_solution(
    boards: Boards,
    share: float = 0.2,
    held_out: int = 1000,
    *,
    seed: int | Sequence[int] = 0,
) -> Split:
    """A share of the distinct solutions is held out, with all their puzzles; the others train.

    Neither a puzzle nor a solution is in both. Tested are the first `held_out` distinct puzzles of
    held-out solutions, or all where there are fewer.

    Args:
        boards: all of them.
        share: of the distinct solutions, rounded up.
        held_out: the most puzzles to test on.
        seed: which solutions; equal seeds hold out equal ones.

    Raises:
        ValueError: a share that leaves no solution on one of the sides, or `held_out` below 1.
    """
    if held_out < 1:
        raise ValueError(f"held_out must be at least 1, got {held_out}")
    count = len(boards.solutions)
    flat = boards.solutions.reshape(count, -1)
    distinct, which = np.unique(flat, axis=0, return_inverse=True)
    away = math.ceil(share * len(distinct))
    if not 0 < away < len(distinct):
        raise ValueError(
            f"a share of {share} leaves nothing to train or to test on: there are {len(distinct)} "
            "distinct solutions"
        )
    chosen = np.random.default_rng(seed).permutation(len(distinct))[:away]
    is_away = np.isin(which.reshape(-1), chosen)
    first = np.zeros(count, bool)
    first[np.unique(boards.puzzles.reshape(count, -1), axis=0, return_index=True)[1]] = True
    test = np.flatnonzero(is_away & first)[:held_out]
    return Split(boards.rows(~is_away & first), boards.rows(test))


def one_hot(boards: np.ndarray) -> np.ndarray:
    """Boards (count, n, n) as float32 (count, n, n, n): 1 at the cell's digit, and nothing but
    zeros where a cell is empty.

    >>> one_hot(np.array([[[0, 2, 0, 0]] * 4]))[0, 0, :2].tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    n = boards.shape[-1]
    return (boards[..., None] == np.arange(1, n + 1)).astype(np.float32)


def given_mask(puzzles: np.ndarray) -> np.ndarray:
    """Which entries of `one_hot(puzzles)` a puzzle gives, bool (count, n, n, n): all n of a clue's
    cell, since the clue says which digits are not there too."""
    n = puzzles.shape[-1]
    return np.repeat((puzzles != 0)[..., None], n, axis=-1)


def from_one_hot(scores: np.ndarray) -> np.ndarray:
    """The board of the highest score of each cell: (count, n, n, n) to uint8 (count, n, n)."""
    return (np.argmax(scores, axis=-1) + 1).astype(np.uint8)


def _file(path: Path, size: int) -> Path:
    if path.is_file():
        return path
    named = path / f"sudoku-{size}x{size}"
    folder = named if named.is_dir() else path
    files = sorted(folder.glob("*.csv"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise FileNotFoundError(
            f"{folder} must hold one .csv file of {size}×{size} boards, and holds {found}"
        )
    return files[0]


def _pair(line: Sequence[str], cells: int, where: str) -> tuple[str, str]:
    if len(line) != 2 or any(len(x) != cells or not (x.isascii() and x.isdigit()) for x in line):
        raise ValueError(f"{where} is not a puzzle and a solution of {cells} digits each")
    return line[0], line[1]
