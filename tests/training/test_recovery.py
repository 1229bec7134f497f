"""Gradients that are not finite, step after step: back to the last good checkpoint."""

import os
import signal

import numpy as np
import pytest

from deqjax.training import Interrupted, read_metrics

from . import tiny_run


class Spoilt(tiny_run.LanguageModelling):
    """Its weights are not finite in the steps that `bad` names."""

    bad = range(0)

    def batch(self, index, rows=slice(None)):
        batch = super().batch(index, rows)
        spoil = np.nan if index in self.bad else 1.0
        return batch._replace(weights=batch.weights * np.float32(spoil))


def train(folder, bad, **changes):
    kind = type("Spoilt", (Spoilt,), {"bad": bad})
    return tiny_run.train(folder, kind, stack_steps=0, **changes)


def test_a_run_goes_back_to_the_last_good_checkpoint_and_says_so(tmp_path, capfd):
    run = train(tmp_path, range(5, 15), steps=20, checkpoint_every=2)
    assert "no finite gradient in the last 10 steps: back to the parameters of step 4" in (
        "".join(capfd.readouterr())
    )
    assert run.result["skipped_steps"] == 10 and run.result["steps"] == 20
    rows = read_metrics(tmp_path / "run")
    assert [r["step"] for r in rows if r["in_a_row"]] == list(range(6, 16))
    assert np.isfinite(rows[-1]["loss"])


@pytest.mark.slow
def test_a_few_skipped_steps_are_only_counted(tmp_path, capfd):
    run = train(tmp_path, range(5, 8))
    assert run.result["skipped_steps"] == 3
    assert "back to" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_run_that_is_stopped_amid_them_says_where_it_goes_on(tmp_path):
    class Terminated(Spoilt):
        bad = range(3, 99)

        def evaluate(self, model):
            os.kill(os.getpid(), signal.SIGTERM)
            return {}

    with pytest.raises(
        Interrupted, match=r"after step 5.* continues from the checkpoint of step 2"
    ):
        tiny_run.train(tmp_path, Terminated, stack_steps=0)


@pytest.mark.slow
def test_a_run_that_nothing_helps_ends_in_a_sentence(tmp_path):
    with pytest.raises(FloatingPointError, match="has not helped; try a smaller --learning-rate"):
        train(tmp_path, range(5, 99), steps=40)
    with pytest.raises(FloatingPointError, match="there is none"):
        train(tmp_path / "at_once", range(99), steps=40)
