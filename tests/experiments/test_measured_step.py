"""The train step of a full-size model as it is measured; here on models of a few numbers."""

import json
from dataclasses import asdict, replace

import pytest

from deqjax.training import command_line
from experiments import measured_step
from experiments.full_size import named

NAMES = ("wt103-transformer-small", "wt103-transformer-small-explicit")
SMALL = dict(vocabulary=50, cutoffs=(), n_in=20, d=20, inner=40, segment=4, memory=4)
CONFIG = measured_step.Config(batch=2, steps=3, repeats=2)


def run(*flags):
    command_line(measured_step.Config, measured_step.main, [str(flag) for flag in flags])


@pytest.fixture(scope="module")
def rows():
    return [measured_step.measure(replace(named(name), **SMALL), CONFIG) for name in NAMES]


@pytest.mark.slow
def test_a_step_is_run_and_counted(rows):
    deq, explicit = rows
    assert (deq.steps, deq.solver, deq.tokens) == (3, "anderson", 8)
    assert (explicit.steps, explicit.solver) == (0, "")
    for row in rows:
        assert 0 < row.quartiles[0] <= row.seconds <= row.quartiles[1]
        assert 0 < row.temporary < row.planned
        assert 3 < row.loss < 5  # about log 50


@pytest.mark.slow
def test_the_tables_set_an_equilibrium_beside_its_explicit_network(rows):
    kept = {"chip": {row.label: asdict(row) | {"said": "`command`"} for row in rows}}
    text = measured_step.markdown(json.loads(json.dumps(kept)))
    last = text.strip().splitlines()[-1]
    assert last.startswith(f"| {NAMES[0]} (anderson, 3 + 3 steps) | {NAMES[1]} | float32 | 2 |")
    assert f"{rows[0].temporary / rows[1].temporary:.3f}" in last


def test_what_cannot_be_measured_gets_a_sentence(capsys, tmp_path):
    for flags, said in (
        (("--only", "wt103-transformer-smal"), "did you mean 'wt103-transformer-small'"),
        (("--batch", 0), "--batch must be at least 1; got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*flags, "--out", tmp_path / "out.md")
        assert stop.value.code == 2 and said in capsys.readouterr().err
