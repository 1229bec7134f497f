"""Sudoku: boards in, boards out, what is counted as right, and runs that go on after a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.data import Boards, one_hot
from deqjax.training import OptionError, TrainOptions, command_line, read_metrics
from experiments import sudoku
from experiments.sudoku import report, results, spectral
from experiments.sudoku.answer import Answer
from experiments.sudoku.score import Score, evaluate
from experiments.sudoku.task import Config, held_in_and_out, prepare

from . import sudoku_boards

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def run(module, *flags):
    defaults = getattr(module, "recipe", None)
    command_line(module.Config, module.main, [str(flag) for flag in flags], defaults)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Boards to train on and 12 to test on."""
    path = tmp_path_factory.mktemp("boards") / "any.csv"
    return sudoku_boards.write(path, sudoku_boards.boards(60))


@pytest.fixture
def tiny(file, tmp_path):
    """Flags of a run of seconds; the name of its folder goes after the layer's."""
    flags = ["--data-dir", file, "--runs", tmp_path, "--held-out", "12", "--batch-size", "8"]
    flags += ["--epochs", "2", "--checkpoint-every", "2", "--max-sweeps", "8"]
    return [*flags, "--clauses", "12", "--auxiliary", "4", "--dimension", "8"]


class Recites(nnx.Module):
    """Fills in what it was told to, whatever it is asked."""

    def __init__(self, boards: Boards, filled: np.ndarray):
        self.known = nnx.Variable(jnp.asarray(boards.puzzles))
        self.filled = nnx.Variable(jnp.asarray(one_hot(filled)))

    def __call__(self, puzzles, adjoint_probe=None):
        same = (puzzles[:, None] == self.known[...][None]).all((2, 3))
        scores = self.filled[...][same.argmax(1)]
        count = jnp.ones(len(puzzles), jnp.int32)
        return Answer(scores, SimpleNamespace(steps=count, converged=count > 0))

    def losses(self, scores, wanted):
        return jnp.abs(scores.reshape(wanted.shape) - wanted).mean(-1)


@pytest.mark.parametrize("batch_size", [4, 5, 30])
def test_a_board_is_right_if_every_cell_is(batch_size):
    boards = sudoku_boards.boards(13, seed=1)
    filled = boards.solutions.copy()
    i, j = np.argwhere(boards.puzzles[3] == 0)[0]
    filled[3, i, j] = filled[3, i, j] % 4 + 1
    i, j = np.argwhere(boards.puzzles[7] > 0)[0]
    filled[7, i, j] = filled[7, i, j] % 4 + 1  # a clue that is overruled
    score = evaluate(Recites(boards, filled), boards, batch_size)
    np.testing.assert_array_equal(score.boards, filled)
    np.testing.assert_array_equal(np.flatnonzero(~score.right), [3, 7])
    means = score.means()
    assert means["boards"] == pytest.approx(11 / 13)
    assert means["cells"] == pytest.approx(1 - 1 / (boards.puzzles == 0).sum())
    assert means["loss"] == pytest.approx(2 * 2 / (13 * 64))
    assert means["converged"] == means["forward_steps"] == 1


def test_by_clues():
    few, many = sudoku_boards.boards(3, clues=8), sudoku_boards.boards(5, clues=11)
    boards = Boards(*(np.concatenate(x) for x in zip(few, many, strict=True)))
    filled = boards.solutions.copy()
    filled[[0, 4, 5], 0, 0] = 0
    nothing = np.zeros(8)
    score = Score(boards, filled, nothing, nothing, nothing)
    assert score.by_clues() == {8: (2, 3), 11: (3, 5)}
    assert results.chosen(score, 2).tolist() == [1, 2, 0, 4]


def test_the_batches_of_an_epoch_are_a_permutation(file):
    config = Config(
        data_dir=file,
        held_out=12,
        layer="satnet",
        epochs=2,
        train=TrainOptions(batch_size=16),
    )
    task = prepare(config)
    assert task.config.train.steps == 6 and task.config.train.eval_every == 3
    epochs = [[task.batch(3 * e + i).puzzles.tobytes() for i in range(3)] for e in range(2)]
    assert epochs[0][0] == task.batch(0).puzzles.tobytes()
    boards = [task.batch(i) for i in range(6)]
    seen = [{p.tobytes() for b in boards[3 * e : 3 * e + 3] for p in b.puzzles} for e in range(2)]
    known = {p.tobytes() for p in task.boards.train.puzzles}
    assert all(len(x) == 48 for x in seen) and seen[0] <= known and epochs[0] != epochs[1]
    part = task.batch(4, slice(2, 5))
    np.testing.assert_array_equal(part.solutions, boards[4].solutions[2:5])


def test_the_seed_holds_out_other_solutions(file):
    config = Config(data_dir=file, split="solutions", held_out=100)
    tests = []
    for seed in (0, 1):
        boards = held_in_and_out(replace(config, train=TrainOptions(seed=seed)))
        tests.append({s.tobytes() for s in boards.test.solutions})
        assert not tests[-1] & {s.tobytes() for s in boards.train.solutions}
    assert tests[0] != tests[1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--data-dir is needed"),
        (["--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["--layer", "satnet", "--start", "spectral", "--data-dir", "."], "is for --layer optnet"),
        (["--clauses", "0"], "--clauses must be an integer >= 1"),
        (["--damping", "0"], "--damping must be positive"),
        (["--smoothing", "0"], "--smoothing must be positive"),
        (["--equalities", "0"], "--equalities must be an integer >= 1"),
        (["--epochs", "0"], "--epochs must be an integer >= 1"),
    ],
)
def test_impossible_options_get_one_sentence(flags, says, capsys, tmp_path):
    if not any(f.startswith("--data") for f in flags) and flags:
        flags = [*flags, "--data-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run(sudoku, "--runs", tmp_path / "runs", *flags)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and says in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_more_boards_than_there_are(file, tmp_path, capsys):
    for flags, says in (
        (["--batch-size", "50"], "there are 48 training boards"),
        (["--held-out", "60"], "held_out must be from 1 to 59"),
        (["--size", "9"], "is not a puzzle and a solution of 81 digits"),
    ):
        with pytest.raises(SystemExit):
            run(sudoku, "--data-dir", file, "--runs", tmp_path, "--held-out", "12", *flags)
        assert says in capsys.readouterr().err


def test_recipes_follow_layer_and_size():
    four, nine = (sudoku.recipe(["--layer", "satnet", "--size", n]) for n in "49")
    assert four.satnet.clauses < nine.satnet.clauses and four.epochs < nine.epochs
    assert nine.train.checkpoint_every < four.train.checkpoint_every
    assert sudoku.recipe(["--size", "9"]).optnet.equalities > 249
    assert sudoku.recipe([]).train.learning_rate != four.train.learning_rate


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tiny, tmp_path, capsys):
    run(sudoku, "--layer", "satnet", *tiny)
    whole = tmp_path / "sudoku-4x4-satnet-puzzles-seed0"
    told = json.loads((whole / "scores.json").read_text())
    assert told["test_boards"] == 12 and told["train_boards"] == 48
    assert [p["epoch"] for p in told["curve"]] == [1, 2] and told["training_steps"] == 12
    assert told["curve"][-1]["boards"] == told["boards"] == told["solved"] / 12
    assert sum(n for _, n in told["by_clues"].values()) == 12
    assert f"{told['solved']} of 12 held-out boards" in capsys.readouterr().out

    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    for step in (12, 10):
        (gone,) = (killed / "checkpoints").glob(f"step_*{step}")
        shutil.rmtree(gone)
    for name in ("scores.json", "weights.npz", "result.json"):
        (killed / name).unlink()
    run(sudoku, "--layer", "satnet", *tiny, "--name", "killed")
    assert (killed / "weights.npz").read_bytes() == (whole / "weights.npz").read_bytes()
    again = json.loads((killed / "scores.json").read_text())
    assert again["cpu_seconds"] is None and again["curve"] == told["curve"]
    assert [r["step"] for r in read_metrics(killed)] == list(range(1, 13))


def test_runs_are_recorded_with_table_and_pictures(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDED", tmp_path / "recorded")
    run(sudoku, "--layer", "satnet", *tiny, "--epochs", "1")
    folder = tmp_path / "sudoku-4x4-satnet-puzzles-seed0"
    for name in ("scores.json", "weights.npz", "result.json"):  # as if it were still going on
        (folder / name).unlink()
    run(report, "--runs", folder, "--weights", "--sweeps", "3")
    (recorded,) = results.folders()
    told = json.loads((recorded / "scores.json").read_text())
    config = (recorded / "config.json").read_text()
    assert str(tmp_path) not in config
    page = (results.RECORDED / results.TABLE).read_text()
    assert f"| {told['solved']} of 12 |" in page and "1, unfinished |" in page
    assert told["by_sweeps"].keys() == {"3", "8"} and told["by_sweeps"]["8"] == told["solved"]
    assert "| 3 sweeps | 8 sweeps |" in page
    for picture in ("epochs.png", "clues.png", f"{recorded.name}/boards.png"):
        assert f"({picture})" in page
        assert (results.RECORDED / picture).stat().st_size > 10_000
    _, model, scores = results.load(recorded)
    boards = sudoku_boards.boards(60)
    score = evaluate(model, boards.rows(slice(-12, None)), 8)
    assert int(score.right.sum()) == scores["solved"]
    assert score.means()["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_the_affine_hull_is_that_of_all_solutions():
    every = sudoku_boards.all_solutions()
    assert len(every) == 288
    A, mean = spectral.affine_hull(every)
    assert A.shape == (40, 64)  # as many as the rules of a 4×4 board have
    np.testing.assert_allclose(A @ A.T, np.eye(40), atol=1e-12)
    x = one_hot(every).reshape(288, 64).astype(float)
    np.testing.assert_allclose(A @ (x - mean).T, 0, atol=1e-12)
    some, _ = spectral.affine_hull(every[::3])
    np.testing.assert_allclose(some.T @ some, A.T @ A, atol=1e-10)  # the same space
    wrong = every[0].copy()
    wrong[0, 0] = wrong[0, 1]
    y = one_hot(wrong[None]).reshape(64)
    assert np.linalg.norm(A @ (y - mean)) > 0.1


def test_too_few_solutions_have_no_hull_worth_having():
    with pytest.raises(OptionError, match="20 training solutions span 19 dimensions"):
        spectral.affine_hull(
            np.random.default_rng(0).permutation(sudoku_boards.all_solutions())[:20]
        )


@pytest.mark.slow
def test_the_spectral_start_learns_nothing_and_is_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RECORDED", tmp_path / "recorded")
    file = sudoku_boards.write(tmp_path / "any.csv", sudoku_boards.boards(150))
    flags = ["--data-dir", file, "--runs", tmp_path, "--held-out", "30", "--batch-size", "30"]
    run(sudoku, "--layer", "optnet", "--start", "spectral", *flags)
    assert "30 of 30 held-out boards right" in capsys.readouterr().out
    folder = tmp_path / "sudoku-4x4-optnet-spectral-puzzles-seed0"
    told = json.loads((folder / "scores.json").read_text())
    assert told["equalities"] == 40 and told["training_steps"] == 0 and told["hull_of"] == 120
    tried = {t["weight"]: t for t in told["clue_weights_tried"]}
    best = max(t["boards"] for t in tried.values())
    assert set(tried) == set(spectral.WEIGHTS) and tried[told["clue_weight"]]["boards"] == best
    options, model, _ = results.load(folder)
    assert options.optnet.clue_weight == told["clue_weight"]
    A, mean = spectral.affine_hull(sudoku_boards.boards(150).solutions[:120])
    np.testing.assert_allclose(model.A[...].T @ model.A[...], A.T @ A, atol=1e-5)
    np.testing.assert_allclose(np.exp(model.log_z0[...]), mean, rtol=1e-4)

    run(report, "--runs", folder)
    learned, rest = (results.RECORDED / results.TABLE).read_text().split("## Not learned")
    assert "spectral | puzzles" in rest and "spectral" not in learned
    assert not (results.RECORDED / folder.name / "weights.npz").exists()


@pytest.mark.slow
def test_optnet_learns_from_the_smoothed_gradient(tmp_path):
    file = sudoku_boards.write(tmp_path / "any.csv", sudoku_boards.boards(300))
    flags = ["--data-dir", file, "--runs", tmp_path, "--held-out", "60", "--batch-size", "24"]
    run(sudoku, "--layer", "optnet", *flags, "--epochs", "30")
    rows = read_metrics(tmp_path / "sudoku-4x4-optnet-puzzles-seed0")
    evaluated = [row for row in rows if "valid_cells" in row]
    assert len(evaluated) == 30 and evaluated[0]["valid_cells"] < 0.5
    assert evaluated[-1]["valid_boards"] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [f for f in results.folders() if (f / results.WEIGHTS).exists()],
    ids=lambda folder: folder.name,
)
def test_recorded_figures_come_from_recorded_weights(folder):
    options, model, scores = results.load(folder)
    data = DATA / f"sudoku-{options.size}x{options.size}"
    if not data.is_dir():
        pytest.skip(f"../shared/data/{data.name} is not here")
    boards = held_in_and_out(replace(options, data_dir=data))
    assert len(boards.train.puzzles) == scores["train_boards"]
    score = evaluate(model, boards.test, options.train.batch_size)
    assert int(score.right.sum()) == scores["solved"]
    assert score.means()["loss"] == pytest.approx(scores["loss"], rel=0.02)
