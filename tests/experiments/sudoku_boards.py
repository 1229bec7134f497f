"""4×4 boards for tests: all 288 solutions, and puzzles of them that have one completion."""

from itertools import permutations

import numpy as np

from deqjax.data import Boards, is_solution


def all_solutions() -> np.ndarray:
    """uint8 (288, 4, 4)."""
    rows = np.array(list(permutations([1, 2, 3, 4])), np.uint8)
    halves = rows[np.indices((24, 24)).reshape(2, -1).T]  # two rows each
    whole = [len(set(half[:, :2].flat)) == len(set(half[:, 2:].flat)) == 4 for half in halves]
    halves = halves[whole]
    both = np.indices((len(halves), len(halves))).reshape(2, -1)
    boards = np.concatenate([halves[both[0]], halves[both[1]]], axis=1)
    return boards[is_solution(boards)]


def boards(count: int, seed: int = 0, clues: int = 9) -> Boards:
    """So many distinct puzzles with that many clues, each with one completion alone."""
    rng = np.random.default_rng(seed)
    every = all_solutions()
    found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    while len(found) < count:
        solution = every[rng.integers(len(every))]
        puzzle = np.zeros(16, np.uint8)
        where = rng.permutation(16)[:clues]
        puzzle[where] = solution.ravel()[where]
        puzzle = puzzle.reshape(4, 4)
        if ((puzzle == 0) | (puzzle == every)).all((1, 2)).sum() == 1:
            found[puzzle.tobytes()] = puzzle, solution
    puzzles, solutions = (np.stack(x) for x in zip(*found.values(), strict=True))
    return Boards(puzzles, solutions)


def write(path, boards: Boards):
    """The CSV file of those boards."""
    text = lambda board: "".join(map(str, board.ravel().tolist()))
    lines = [f"{text(p)},{text(s)}" for p, s in zip(*boards, strict=True)]
    path.write_text("\n".join(["puzzle,solution", *lines]) + "\n")
    return path
