"""Sudoku boards: reading and refusing files, splits without a leak, one-hot tensors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax.data import (
    Boards,
    from_one_hot,
    given_mask,
    is_solution,
    load_sudoku,
    one_hot,
    split_boards,
    split_by_solution,
)

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def solutions(rng, count, n):
    """Random solutions: digits renamed, rows and columns shuffled within their bands."""
    b = {4: 2, 9: 3}[n]
    i, j = np.mgrid[:n, :n]
    grid = (b * (i % b) + i // b + j) % n
    made = []
    for _ in range(count):
        rows, columns = ((b * np.arange(b)[:, None] + rng.permutation(b)).ravel() for _ in range(2))
        made.append(1 + rng.permutation(n)[grid[np.ix_(rows, columns)]])
    return np.array(made, np.uint8)


def boards(seed, count, n, repeats=0):
    """Random boards, the last `repeats` of which repeat the first."""
    rng = np.random.default_rng(seed)
    full = solutions(rng, count - repeats, n)
    puzzles = np.where(rng.random(full.shape) < 0.5, full, 0).astype(np.uint8)
    again = np.r_[: len(full), np.arange(repeats) % len(full)]
    return Boards(puzzles[again], full[again])


def write(path, boards, head="puzzle,solution"):
    digits = lambda board: "".join(map(str, board.ravel().tolist()))
    lines = [f"{digits(p)},{digits(s)}" for p, s in zip(*boards, strict=True)]
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def ids(array):
    return {x.tobytes() for x in array}


@pytest.mark.parametrize("n", [4, 9])
def test_what_is_written_is_read(n, tmp_path):
    made = boards(0, 20, n, repeats=3)
    folder = tmp_path / f"sudoku-{n}x{n}"
    folder.mkdir()
    file = write(folder / "any.csv", made, "quizzes,solutions")
    for where in (file, folder, str(tmp_path)):
        read = load_sudoku(where, n)
        np.testing.assert_array_equal(read.puzzles, made.puzzles)
        np.testing.assert_array_equal(read.solutions, made.solutions)
    assert read.size == n and read.puzzles.dtype == np.uint8
    np.testing.assert_array_equal(read.clues, (made.puzzles > 0).sum((1, 2)))


def test_files_that_cannot_be_right_get_a_sentence(tmp_path):
    good = boards(0, 5, 4)
    file = tmp_path / "boards.csv"

    def refused(says, puzzles=good.puzzles, solutions=good.solutions, n=4):
        write(file, Boards(puzzles, solutions))
        with pytest.raises(ValueError, match=says):
            load_sudoku(file, n)

    refused("line 2 of .* is not a puzzle and a solution of 81 digits", n=9)
    refused("size is 4 or 9, got 5", n=5)
    wrong = good.solutions.copy()
    wrong[3, 0, 0] = wrong[3, 0, 1]
    refused("line 5 of .* breaks the rules", solutions=wrong)
    wrong = good.puzzles.copy()
    wrong[2, 1, 1] = good.solutions[2, 1, 1] % 4 + 1
    refused("line 4 of .* does not agree", puzzles=wrong)
    wrong[2, 1, 1] = 7
    refused("line 4 of .* digit above", puzzles=wrong)
    refused("no boards below", good.puzzles[:0], good.solutions[:0])
    file.write_text("puzzle,solution\n12x4" + "0" * 12 + "," + "1" * 16 + "\n")
    with pytest.raises(ValueError, match="line 2 of"):
        load_sudoku(file, 4)


def test_folders_without_a_file_or_with_several(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none"):
        load_sudoku(tmp_path, 4)
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, boards(0, 2, 4))
    with pytest.raises(FileNotFoundError, match=r"holds a\.csv, b\.csv"):
        load_sudoku(tmp_path, 4)


@pytest.mark.parametrize("n", [4, 9])
def test_is_solution_knows_rows_columns_and_blocks(n):
    (good,) = solutions(np.random.default_rng(0), 1, n)
    i, j = np.mgrid[:n, :n]
    latin = (i + j) % n + 1  # rows and columns are right, blocks are not
    rows_only = np.broadcast_to(np.arange(1, n + 1), (n, n))
    b = {4: 2, 9: 3}[n]
    blocks_only = b * (i % b) + j % b + 1
    several = np.stack([good, latin, rows_only, rows_only.T, blocks_only])
    assert is_solution(several).tolist() == [True, False, False, False, False]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(8, 60), repeats=st.integers(0, 6), n=st.just(4)
)
def test_no_puzzle_is_on_both_sides(seed, count, repeats, n):
    made = boards(seed, count, n, repeats=repeats)
    distinct = len(ids(made.puzzles))
    held_out = max(1, distinct // 3)
    split = split_boards(made, held_out)
    train, test = ids(split.train.puzzles), ids(split.test.puzzles)
    assert not train & test
    assert len(test) == len(split.test.puzzles) == held_out
    assert len(train) == len(split.train.puzzles) == distinct - held_out
    np.testing.assert_array_equal(split.test.puzzles[-1], made.puzzles[-1])


def test_what_is_repeated_at_the_end_is_held_out():
    made = boards(0, 30, 4, repeats=5)
    split = split_boards(made, 5)
    assert ids(split.test.puzzles) == ids(made.puzzles[:5]) == ids(made.puzzles[-5:])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.1, 0.2, 0.5]))
def test_no_solution_is_on_both_sides(seed, share):
    made = boards(seed, 60, 4, repeats=6)
    split = split_by_solution(made, share, 10_000, seed=seed)
    train, test = ids(split.train.solutions), ids(split.test.solutions)
    assert not train & test
    assert len(test) == np.ceil(share * len(ids(made.solutions)))
    assert train | test == ids(made.solutions)
    both = np.concatenate([split.train.puzzles, split.test.puzzles])
    assert len(both) == len(ids(both)) == len(ids(made.puzzles))


def test_the_seed_decides_which_solutions_and_held_out_how_many_boards():
    made = boards(0, 200, 4)
    one, same, other = (split_by_solution(made, 0.2, seed=s).test for s in (1, 1, 2))
    np.testing.assert_array_equal(one.puzzles, same.puzzles)
    assert ids(one.solutions) != ids(other.solutions)
    few = split_by_solution(made, 0.2, 3, seed=1)
    np.testing.assert_array_equal(few.test.puzzles, one.puzzles[:3])
    assert not ids(few.train.solutions) & ids(one.solutions)


def test_impossible_splits_get_a_sentence():
    made = boards(0, 10, 4)
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"from 1 to 9.*got {wrong}"):
            split_boards(made, wrong)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="leaves nothing"):
            split_by_solution(made, share)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        split_by_solution(made, 0.2, 0)


@pytest.mark.parametrize("n", [4, 9])
def test_one_hot_there_and_back(n):
    made = boards(0, 6, n)
    clues, mask = one_hot(made.puzzles), given_mask(made.puzzles)
    assert clues.shape == mask.shape == (6, n, n, n) and mask.dtype == bool
    np.testing.assert_array_equal(from_one_hot(one_hot(made.solutions)), made.solutions)
    np.testing.assert_array_equal(mask, np.broadcast_to((made.puzzles > 0)[..., None], mask.shape))
    np.testing.assert_array_equal(clues.sum(-1), made.puzzles > 0)
    np.testing.assert_array_equal(clues[mask], one_hot(made.solutions)[mask])
    assert not clues[~mask].any()


@pytest.mark.parametrize(
    ("n", "count", "distinct", "grids"), [(4, 10_000, 9570, 288), (9, 15_000, 15_000, 15_000)]
)
def test_the_well_known_sets(n, count, distinct, grids):
    folder = DATA / f"sudoku-{n}x{n}"
    if not folder.is_dir():
        pytest.skip(f"../shared/data/sudoku-{n}x{n} is not here")
    read = load_sudoku(folder, n)
    assert (len(read.puzzles), len(ids(read.solutions))) == (count, grids)
    split = split_boards(read)
    assert len(split.test.puzzles) == 1000 and len(split.train.puzzles) == distinct - 1000
    assert ids(read.puzzles[-900:]) <= ids(split.test.puzzles)
    by_solution = split_by_solution(read)
    assert len(by_solution.test.puzzles) == 1000
    assert not ids(by_solution.train.solutions) & ids(by_solution.test.solutions)
