"""The command for a GPU, in miniature on a CPU."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deqjax.training import command_line
from experiments.full_size import CONFIGS, named
from experiments.full_size.plan import plan
from experiments.gpu import Config, penn, report, solvers, step
from experiments.gpu.__main__ import main
from experiments.gpu.ledger import Ledger
from experiments.language_model import build, recipe
from experiments.language_model.paper import PAPER

HERE = Path(__file__).parents[2]
NAMES = [case.name for case in step.cases()]
DEQ, EXPLICIT = NAMES[0], NAMES[1]


def row(seconds, peak=None, **more):
    found = dict(seconds=seconds, quartiles=[seconds, seconds], evaluated=seconds / 3, tokens=30)
    return found | dict(peak=peak, planned=100, temporary=80, jax="0") | more


def quick(folder, *flags):
    command = [sys.executable, "-m", "experiments.gpu", "--quick", "--runs", str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command += [str(flag) for flag in flags]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)


# -------------------------------------------------------------------------------- the ledger


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path):
    ledger = Ledger(tmp_path / "a", tmp_path / "b")
    ledger.put("chip", "step", DEQ, row(2.0))
    ledger.put("chip", "step", EXPLICIT, dict(failed="no memory"))
    ledger.put("chip", "penn", "trellisnet", dict(unfinished=True))
    again = Ledger(tmp_path / "b", tmp_path / "nowhere")
    assert again.done("chip", "step", DEQ) and not again.done("chip", "step", EXPLICIT)
    assert not again.done("chip", "penn", "trellisnet") and not again.done("other", "step", DEQ)
    again.put("chip", "step", DEQ, dict(failed="the time was up"))
    assert again.rows("chip", "step")[DEQ]["seconds"] == 2.0
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["gpu.json"]


# -------------------------------------------------------------------------------- the tables


def test_ratios_stand_beside_the_papers_and_are_lines_in_the_steps(tmp_path):
    steps = {n: f"wt103-transformer-medium, float32, {n} + {n} steps" for n in (6, 12)}
    rows = {steps[12]: row(5.0, 30), "wt103-transformer-medium-explicit, float32": row(2.0, 60)}
    (ratio,) = step.ratios_of(rows)
    assert (ratio.steps, ratio.training, ratio.memory) == (12, 2.5, 0.5)
    text = "\n".join(step.report(rows))
    assert "| 12 + 12 | 2.50 | 2.82 | 2.50 | 1.76 | 0.50 | 0.32 |" in text
    assert "straight lines" not in text  # of one number of steps there is none
    rows[steps[6]] = row(3.8, 30)
    text = "\n".join(step.report(rows))
    assert "training 1.30 + 0.100 a step, the paper's 2.82 at 15.2" in text
    step.picture(rows, tmp_path, "chip")
    assert (tmp_path / "ratios.png").stat().st_size > 10_000


def test_the_page_says_what_is_missing(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.put("chip", "step", DEQ, row(5.0, 30))
    ledger.put("chip", "step", EXPLICIT, dict(failed="no memory"))
    ledger.put("chip", "plan", DEQ, dict(measured_seconds=5.0, seconds=2.5, topology="h100:1",
                                         measured_peak=30, peak=None))  # fmt: skip
    curve = [[1000, 300.0], [2000, 200.0]]
    trained = dict(step=20, steps=40, unfinished=True, epochs=0.5, perplexity=210.0, rate=1e5,
                   score_rate=2e5, parameters=24e6, forward_steps=9.0, adjoint_steps=7.0,
                   converged=0.98, curve=curve)  # fmt: skip
    ledger.put("chip", "penn", "trellisnet", trained)
    report.write(ledger, tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    assert f"- {EXPLICIT}: no memory" in text
    assert f"| {DEQ} | 5000.0 | 2500.0 | 2.00 | 0.00 | – | – |" in text
    assert "| DEQ-TrellisNet | 24.0M | 210.0 | 57.1 | 20 of 40 steps |" in text
    assert (tmp_path / "penn.png").exists()


# -------------------------------------------------------------------------------- the parts


def test_steps_come_in_pairs_and_the_first_ones_first():
    assert NAMES[:4] == [
        "wt103-transformer-medium, float32, 12 + 12 steps",
        "wt103-transformer-medium-explicit, float32",
        "wt103-trellisnet, float32, 12 + 12 steps",
        "wt103-trellisnet-explicit, float32",
    ]
    assert len(NAMES) == len(set(NAMES)) == 16
    for ours, theirs in step.PAIRS.items():
        assert theirs in CONFIGS[ours].explicit


@pytest.mark.slow
def test_a_step_in_miniature():
    found = step.run(EXPLICIT, Config(quick=True))
    assert found["model"] == "wt103-transformer-medium-explicit" and found["tokens"] == 16
    assert found["seconds"] > 0 and found["evaluated"] > 0


@pytest.mark.parametrize("preset", [name for name in PAPER if name.endswith("-short")])
def test_presets_have_the_papers_size(preset):
    """24M parameters, the words included."""
    import jax
    from flax import nnx

    short, long = (recipe(["--preset", p]) for p in (preset, preset.removesuffix("-short")))
    assert replace(short, train=long.train, preset=long.preset) == long
    assert short.train.steps < long.train.steps and (long.dropout_in, long.dropout) == (0.45, 0.28)
    model = nnx.eval_shape(lambda: build(short, 10_000, nnx.Rngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert abs(count / 24e6 - 1) < 0.03


def test_parts_say_what_they_measure():
    given = Config()
    assert penn.units(given, {}) == []  # no text
    assert penn.units(replace(given, data_dir=Path(".")), {}) == list(penn.MODELS)
    names = solvers.units(given, {})
    assert names[0] == "per_step, float32" and len(names) == 10
    rows = {DEQ: row(1.0), EXPLICIT: dict(failed="no memory")}
    assert report.MODULES["plan"].units(given, rows) == [DEQ]


def test_what_cannot_be_gets_a_sentence(capsys, tmp_path):
    for flags, said in (
        (("--minutes", "0"), "--minutes must be above 0"),
        (("--data-dir", tmp_path / "no"), "is no folder"),
        (("--unit", DEQ), "--unit goes with one --part and an --answer"),
    ):
        with pytest.raises(SystemExit) as stop:
            command_line(Config, main, [str(flag) for flag in flags])
        assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
def test_no_gpu_no_figures(tmp_path):
    done = quick(tmp_path, "--no-quick", "--out", tmp_path / "out")
    assert done.returncode == 2 and "only a CPU" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_part_in_miniature(tmp_path):
    """Also that a second call has nothing left to do, and that the pictures are there."""
    done = quick(tmp_path, "--minutes", 15)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("nothing is left"), done.stdout[-3000:]
    out = tmp_path / "results"
    text = (out / "gpu.md").read_text()
    for module in report.MODULES.values():
        assert f"### {module.TITLE}" in text
    assert "Not measured" not in text
    assert {"gpu.json", "gpu.md", "penn.png", "ratios.png"} <= {p.name for p in out.iterdir()}
    assert any((tmp_path / "cache").iterdir())
    (parts,) = json.loads((out / "gpu.json").read_text()).values()
    assert set(parts["penn"]) == set(penn.MODELS)
    assert all(not found["unfinished"] for found in parts["penn"].values())
    again = quick(tmp_path, "--minutes", 1)
    assert "nothing is left" in again.stdout and "step:" not in again.stdout


@pytest.mark.slow
def test_training_that_is_stopped_goes_on(tmp_path, monkeypatch):
    """Where the time ends amid a schedule, the next call ends it."""
    from experiments.gpu.clock import UNTIL

    given = Config(quick=True, runs=tmp_path)
    monkeypatch.setattr(penn, "SCORING", 0.0)
    monkeypatch.setenv(UNTIL, "inf")
    fit = penn.fit

    def interrupted(task, options, config, **rest):
        evaluate = type(task).evaluate

        def stop(self, model):
            signal.raise_signal(signal.SIGTERM)
            return evaluate(self, model)

        monkeypatch.setattr(type(task), "evaluate", stop)
        try:
            return fit(task, options, config, **rest)
        finally:
            monkeypatch.setattr(type(task), "evaluate", evaluate)

    monkeypatch.setattr(penn, "fit", interrupted)
    first = penn.run("transformer-xl", given)
    assert first["unfinished"] and 0 < first["step"] < first["steps"]
    monkeypatch.setattr(penn, "fit", fit)
    second = penn.run("transformer-xl", given)
    assert not second["unfinished"] and second["steps"] == first["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for pair in step.PAIRS.items() for n in pair])
def test_full_size_compiles_for_a_gpu_that_is_not_here(name):
    """The training step at the paper's 15 x 150, scanned where it is explicit."""
    if not any(p.name.startswith("jax-cuda") for p in _distributions()):
        pytest.skip("needs the CUDA plugin of this jax")
    model = named(name)
    model = replace(model, scan=not model.solves, segment=step.SEGMENT)
    found = plan(model, "h100:1", global_batch=step.BATCH, evaluations=False)
    assert found.fits and found.memory.peak > 10**9


def _distributions():
    import importlib.metadata

    return importlib.metadata.distributions()
