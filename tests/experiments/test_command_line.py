"""The experiments from the outside: flags, refusals, and a tiny run of each."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from deqjax.adjoints import ADJOINTS
from deqjax.solvers import SOLVERS
from deqjax.training import TrainOptions, command_line, read_metrics
from experiments import (
    convergence,
    convergence_over_training,
    copy_memory,
    evaluate,
    language_model,
)
from experiments.copy_memory import picture, results
from experiments.copy_memory.task import evaluate as score_copies
from experiments.copy_memory.task import held_out

SMALL = ["--steps", "3", "--batch-size", "4", "--eval-every", "3", "--log-every", "1"]


@pytest.fixture
def text(tmp_path):
    """A folder with a text of 5,000 characters in which each word follows from the one before."""
    words = "one two three four five six seven eight nine ten\n"
    (tmp_path / "input.txt").write_text(words * 100)
    return tmp_path


def run(module, *flags):
    defaults = getattr(module, "recipe", None)
    command_line(module.Config, module.main, [str(flag) for flag in flags], defaults)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--solver", "andersen"], "did you mean 'anderson'"),
        (["--adjoint", "exact"], "is not a known adjoint"),
        (["--adjoint", "jfb", "--adjoint-solver", "picard"], "adjoint_solver= has no effect"),
        (["--rtol", "-1"], "rtol must be a finite number >= 0"),
        (["--max-steps", "-3"], "max_steps must be an integer >= 0"),
        (["--steps", "0"], "--steps must be an integer >= 1"),
        (["--width", "30", "--heads", "4"], "multiple of heads"),
        (["--dropout", "1.5"], "dropout must be in [0, 1)"),
        (["--model", "transformer-xl", "--warm-start"], "--warm-start is for deq-transformer"),
        (["--model", "lstm", "--jacobian", "1"], "--jacobian are for deq-transformer"),
        (["--tighten"], "must not be 0"),
        (["--chunk-size", "0"], "--chunk-size must be an integer >= 1"),
        (["--model", "lstm", "--chunk-size", "8"], "--chunk-size is for the transformers"),
        (["--softmax-chunk", "0"], "--softmax-chunk must be an integer >= 1"),
        (["--model", "lstm", "--softmax-chunk", "8"], "--softmax-chunk is not for lstm"),
        (
            ["--model", "transformer-xl", "--prelude", "1"],
            "--prelude and --injection state are for",
        ),
        (["--prelude", "-1"], "--prelude must be an integer >= 0"),
        (["--depth", "0"], "--depth must be an integer >= 1"),
        (
            ["--model", "trellisnet", "--remat", "all"],
            "--remat all is for transformer-xl",
        ),
        (["--cheap-adjoint", "exact"], "is not a known adjoint"),
        (["--cutoffs", "9000"], "a cutoff must be below vocabulary"),
        (["--dataset", "ptbb"], "did you mean 'ptb'"),
        (["--dataset", "ptb", "--data-dir", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--dataset", "text"], "needs data_dir"),
    ],
)
def test_impossible_options_get_one_sentence(flags, says, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(language_model, "--runs", tmp_path, *flags)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and says in said and "\n" not in said
    assert not list(tmp_path.iterdir()), "nothing may be written before the options are known good"


def test_unknown_flags_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        run(language_model, "--tolerance", "1")
    assert stop.value.code == 2 and "--tolerance" in capsys.readouterr().err


def test_help_shows_every_flag_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        run(language_model, "--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in (
        "--solver",
        "--adjoint",
        "--adjoint-solver",
        "--rtol",
        "--max-steps",
        "--data-dir",
    ):
        assert flag in said
    assert "default: anderson" in said and "default: python-docs" in said
    for known in (SOLVERS, ADJOINTS):
        assert all(name in said for name in known)
    for group in ("data", "network", "dropout", "solver", "train.curriculum", "train.launch"):
        assert f"{group} options" in said


def test_help_begins_with_the_program_and_its_examples():
    command = [sys.executable, "-m", "experiments.generate", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("usage: python -m experiments.generate ")
    assert re.search(r"^\$ python -m experiments.generate --run runs/python-docs", said, re.M)


def test_groups_of_options_change_nothing():
    """A base class and a nested class, at their defaults and with a preset's."""
    seen = []
    flags = ["--preset", "ptb", "--rtol", "0.5", "--coordinator", "a:1"]
    command_line(language_model.Config, seen.append, flags, language_model.recipe)
    expected = language_model.recipe(flags)
    launch = replace(expected.train.launch, coordinator="a:1")
    train = replace(expected.train, launch=launch)
    solver = replace(expected.solver, rtol=0.5)
    assert seen == [replace(expected, solver=solver, train=train)]
    assert seen[0].train.steps == 9000 and type(seen[0].train) is TrainOptions


def test_language_model_end_to_end(text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL]
    flags += ["--segment", "16", "--memory", "8", "--width", "16", "--heads", "2", "--inner", "32"]
    run(language_model, *flags, "--solver", "broyden", "--adjoint-solver", "picard")
    folder = tmp_path / "runs" / "text"
    result = json.loads((folder / "result.json").read_text())
    said = capsys.readouterr().out
    assert result["steps"] == 3 and np.isfinite(result["valid_perplexity"])
    assert set(result["baselines"]) == {"unigram", "bigram"}
    assert "bigram" in said and "a sample:" in said and str(folder) in said
    assert {"curves.png", "sample.txt", "config.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["solver"] == "broyden"


TINY = ["--segment", "16", "--memory", "8", "--width", "16", "--heads", "2", "--inner", "16"]
TINY += ["--hidden", "16", "--layers", "2", "--depth", "2"]
TRAINED = {
    "deq-transformer": [
        "--jacobian",
        "0.1",
        "--tighten",
        "--stack-steps",
        "1",
        "--cheap-steps",
        "1",
    ],
    "deq-trellisnet": [
        "--stack-steps",
        "0",
        "--weight-drop",
        "0.1",
        "--weight-norm",
        "--activation",
        "1",
    ],
    "universal-transformer": [
        *("--blocks", "2", "--norm", "pre", "--prelude", "1", "--injection", "state"),
        *("--schedule", "plateau", "--softmax-chunk", "16"),
    ],
    "trellisnet": ["--remat", "sqrt", "--dropout", "0.1", "--dropout-words", "0.1"],
    "transformer-xl": ["--remat", "sqrt", "--cutoffs", "6", "--divisor", "2"],
    "lstm": ["--optimiser", "sgd", "--temporal", "1", "--weight-drop", "0.2"],
}


@pytest.mark.slow  # the default model is in every run: the test above
@pytest.mark.parametrize("model", TRAINED)
def test_every_language_model_end_to_end(model, text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    run(language_model, *flags, "--model", model, *TRAINED[model])
    folder = tmp_path / "runs" / ("text" if model == "deq-transformer" else f"text-{model}")
    result = json.loads((folder / "result.json").read_text())
    solves = model.startswith("deq-")
    assert np.isfinite(result["valid_perplexity"]) and result["skipped_steps"] == 0
    assert ("final_converged" in result) == ("valid_converged" in result) == solves

    capsys.readouterr()
    (lines,) = [run_evaluate(capsys, "--run", folder, "--split", "valid")]
    assert lines[0].perplexity == pytest.approx(result["valid_perplexity"], rel=1e-4)
    assert (lines[0].steps is not None) == solves
    if not solves:
        with pytest.raises(SystemExit):
            run(evaluate, "--run", folder, "--rtol", "0.1")
        assert "--rtol has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["quick", "ptb", "wikitext-2"])
@pytest.mark.parametrize("model", TRAINED)
def test_every_preset_fits_every_model(model, preset):
    flags = ["--model", model, "--preset", preset]
    found = []
    command_line(language_model.Config, found.append, flags, language_model.recipe)
    (config,) = found
    assert (config.model, config.preset) == (model, preset)
    assert config.dataset == ("python-docs" if preset == "quick" else preset)
    for options in (config, config.solver, config.train, config.penalties):
        options.check()
    shapes = nnx.eval_shape(lambda: language_model.build(config, 1000, nnx.Rngs(0)))
    assert shapes.solves == config.solves


def run_evaluate(capsys, *flags):
    found = []
    command_line(evaluate.Config, lambda c: found.append(evaluate.main(c)), [str(f) for f in flags])
    return found[0]


@pytest.mark.slow
def test_steps_are_traded_for_perplexity(text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    run(language_model, *flags)
    folder = tmp_path / "runs" / "text"
    lines = run_evaluate(capsys, "--run", folder, "--table", "--tokens", "200")
    by_limit = {line.limit: line for line in lines}
    assert by_limit["at most 3 steps"].steps == 3 and by_limit["tolerance 0.1"].converged == 1
    steps = [line.steps for line in lines if line.limit.startswith("tolerance")]
    assert steps == sorted(steps)
    assert (folder / "trade-test.png").stat().st_size > 10_000


@pytest.mark.slow
def test_runs_are_recorded_with_a_command_that_repeats_them(text, tmp_path, capsys, monkeypatch):
    from experiments.language_model import results as recorded
    from experiments.language_model import score

    monkeypatch.setattr(recorded, "RECORDED", tmp_path / "recorded")
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    flags += ["--cutoffs", "4", "9", "--warm-start", "--stack-steps", "1"]
    run(language_model, *flags)
    folder = tmp_path / "runs" / "text"
    run_evaluate(capsys, "--run", folder, "--record")
    row = json.loads((tmp_path / "recorded" / "text" / "row.json").read_text())
    assert row["memory_bytes"] > 4 * 4 * row["parameters"]  # with gradients and two moments
    assert 0 < row["non_embedding"] < row["parameters"] and row["seconds_per_step"] > 0
    table = (tmp_path / "recorded" / "README.md").read_text()
    assert f"{row['test_perplexity']:.1f}" in table and row["command"] in table

    words = row["command"].replace("path/to/text", str(text)).split()[3:]
    again = []
    command_line(language_model.Config, again.append, words, language_model.recipe)
    config = score.load(folder, None).config
    assert recorded.command(again[0]) == row["command"] == recorded.command(config)
    assert again[0].train.steps == 3 and again[0].cutoffs == (4, 9) and again[0].warm_start
    with pytest.raises(SystemExit):
        run(evaluate, "--run", folder, "--record", "--tokens", "9")
    assert "--record keeps" in capsys.readouterr().err


def test_the_vocabulary_is_kept_and_checked(text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    run(language_model, *flags, "--model", "lstm")
    folder, other = tmp_path / "runs" / "text-lstm", tmp_path / "other"
    assert (folder / "vocabulary.json").exists()
    other.mkdir()
    (other / "input.txt").write_text("another text, with other letters: ABC\n" * 100)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(evaluate, "--run", folder, "--data-dir", other)
    assert "another vocabulary" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(evaluate, "--run", tmp_path / "nothing")
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deq-transformer", "trellisnet"])
def test_convergence_is_followed_through_training(model, text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    run(language_model, *flags, "--model", model, "--snapshot-every", "1")
    folder = tmp_path / "runs" / ("text" if model == "deq-transformer" else f"text-{model}")
    assert len(list((folder / "snapshots").iterdir())) == 3
    flags = ["--length", "8", "20", "--rows", "2", "--max-steps", "7"]
    run(convergence_over_training, "--run", folder, *flags)
    found = json.loads((folder / "convergence-over-training.json").read_text())
    assert set(found) == {"8", "20"} and set(found["8"]) == {"1", "2", "3"}
    for lines in found["20"].values():
        for residuals in lines.values():
            assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 0.5
    assert (folder / "convergence-over-training.png").stat().st_size > 10_000


@pytest.mark.slow
def test_convergence_of_a_trained_cell(text, tmp_path, capsys):
    flags = ["--dataset", "text", "--data-dir", text, "--runs", tmp_path / "runs", *SMALL, *TINY]
    run(language_model, *flags)
    folder = tmp_path / "runs" / "text"
    run(convergence, "--run", folder, "--max-steps", "6")
    said = capsys.readouterr().out
    assert all(solver in said for solver in convergence.SOLVERS)
    assert (folder / "convergence.png").stat().st_size > 10_000


def test_snapshots_are_needed_to_follow_training(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(convergence_over_training, "--run", tmp_path)
    assert "--snapshot-every" in capsys.readouterr().err


def test_convergence_needs_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(convergence, "--run", tmp_path)
    assert "holds no run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["ptb", "wikitext-2"])
def test_real_corpora(dataset, tmp_path, capsys):
    folder = Path(__file__).parents[3] / "shared" / "data" / dataset
    if not folder.exists():
        pytest.skip(f"needs the {dataset} files in ../shared/data")
    flags = ["--dataset", dataset, "--data-dir", folder, "--runs", tmp_path, "--width", "16"]
    run(language_model, *SMALL, *flags, "--segment", "32", "--inner", "16", "--eval-rows", "64")
    result = json.loads((tmp_path / dataset / "result.json").read_text())
    assert result["baselines"]["bigram"] < result["baselines"]["unigram"] < 1000
    assert np.isfinite(result["valid_perplexity"])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, marks=pytest.mark.slow)
        for m in ("lstm", "deq-transformer", "universal-transformer", "tcn", "gru")
    ],
)
def test_copy_memory_end_to_end(model, tmp_path, capsys):
    flags = ["--length", "5", "--train-sequences", "8", "--test-sequences", "6", "--width", "8"]
    flags += ["--model", model, "--heads", "2", "--inner", "8", "--depth", "2"]
    run(copy_memory, "--runs", tmp_path, *SMALL, *flags)
    folder = tmp_path / f"copy-memory-5-{model}"
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["valid_recall"] <= 1 and result["parameters"] > 0
    assert ("valid_forward_steps" in result) == (model == "deq-transformer")
    assert "test loss" in capsys.readouterr().out

    run(evaluate, "--weights", folder, "--no-checks")
    said = capsys.readouterr().out
    scores = json.loads((folder / "scores.json").read_text())
    assert f"{scores['loss']:.2e}" in said


@pytest.mark.slow
@pytest.mark.parametrize("folder", results.folders(), ids=lambda folder: folder.name)
def test_recorded_figures_come_from_recorded_weights(folder):
    options, model, scores = results.load(folder)
    pair = held_out(options.train.seed, options.test_sequences, options.length)
    score = score_copies(model, pair, 50)
    assert score.recall == pytest.approx(scores["recall"], abs=1e-3)
    assert score.loss == pytest.approx(scores["loss"], rel=0.1)


@pytest.mark.slow
def test_runs_are_recorded_with_their_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RECORDED", tmp_path / "recorded")
    flags = ["--length", "5", "--train-sequences", "8", "--test-sequences", "6", "--width", "8"]
    flags += ["--heads", "2", "--inner", "8", "--jacobian", "0.1", "--stack-steps", "1"]
    run(copy_memory, "--runs", tmp_path, *SMALL, *flags)
    run(evaluate, "--weights", tmp_path / "copy-memory-5-deq-transformer", "--record")
    (folder,) = results.folders()
    scores = json.loads((folder / "scores.json").read_text())
    table = (results.RECORDED / results.TABLE).read_text()
    assert f"{scores['loss']:.2e}" in table and "| random start | 5 |" in table
    assert f"{scores['training_forward_steps']:.1f} / " in table
    run(picture, "--weights", folder)
    assert (folder / "equilibrium.png").stat().st_size > 10_000
    assert "/equilibrium.png)" in results.table() and "/equilibrium.png)" not in table
    capsys.readouterr()
    run(evaluate)  # what is recorded, since nothing is named
    assert f"{scores['loss']:.2e}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_stack_is_trained_to_settle_and_the_solve_is_not(tmp_path):
    """The penalty is in the loss of a stack's step, and only there."""
    losses = {}
    for settle in (0.0, 10.0):
        flags = ["--length", "5", "--train-sequences", "8", "--test-sequences", "2", "--width", "8"]
        flags += ["--inner", "8", "--stack-steps", "1", "--settle", settle]
        run(copy_memory, "--runs", tmp_path / str(settle), *SMALL, *flags)
        folder = tmp_path / str(settle) / "copy-memory-5-deq-transformer"
        stack, solve = list(read_metrics(folder))[:2]
        assert ("unsettled" in stack) == (settle > 0) and "unsettled" not in solve
        losses[settle] = stack["loss"]
    added = losses[10.0] - losses[0.0]
    assert added == pytest.approx(10.0 * stack["unsettled"], rel=1e-4) and added > 1e-3


def test_the_recipe_follows_model_and_preset():
    paper = copy_memory.recipe(["--preset", "paper"])
    quick = copy_memory.recipe(["--length", "9"])
    assert paper.train.steps > quick.train.steps
    assert copy_memory.recipe(["--model", "tcn"]).width != quick.width


def test_a_folder_without_weights_gets_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(evaluate, "--weights", tmp_path)
    assert stop.value.code == 2 and "holds no weights.npz" in capsys.readouterr().err
