"""A run that is killed and started again is the run that was never killed, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deqjax.training import Checkpoints, Interrupted, OptionError, load_model, read_metrics

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_run.train(folder)
    return folder / "run"


def rows(folder):
    """Everything that was recorded, except how long it took."""
    kept = read_metrics(folder)
    for row in kept:
        row.pop("tokens_per_second", None)
        row.pop("input_wait", None)
    return kept


def test_a_run_leaves_what_it_promises(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "result.json", "curves.png", "checkpoints"}
    recorded = rows(whole)
    assert [row["step"] for row in recorded] == list(range(1, 13))
    assert all({"loss", "perplexity", "forward_steps"} <= set(row) for row in recorded)
    # The first three steps train a stack, which does not converge and has no adjoint solve.
    for key in ("adjoint_steps", "converged"):
        assert [(key in row) for row in recorded] == [False] * 3 + [True] * 9
    assert [row["step"] for row in recorded if "valid_perplexity" in row] == [5, 10, 12]


def test_the_best_checkpoint_is_kept_by_its_validation_loss(whole):
    losses = {row["step"]: row["valid_loss"] for row in rows(whole) if "valid_loss" in row}
    with Checkpoints(whole / "checkpoints") as checkpoints:
        kept = checkpoints.steps()
        assert kept[-3:] == [8, 10, 12]  # step 5 was evaluated and not saved
        assert checkpoints.best == min((10, 12), key=lambda step: (losses[step], -step))


def test_a_model_is_loaded_from_the_newest_or_the_best_checkpoint(whole):
    task, options = tiny_run.task(), tiny_run.options(whole.parent)
    losses = {row["step"]: row["valid_loss"] for row in rows(whole) if "valid_loss" in row}
    loss = lambda which: task.evaluate(load_model(task, options, whole, which))["valid_loss"]
    assert loss("latest") == losses[12]
    assert loss("best") == min(losses[10], losses[12])


def test_sigkill_anywhere_changes_nothing(whole, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("tiny_run.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "run" / "result.json").exists(), "it was to be killed before the end"

    tiny_run.train(tmp_path)
    assert rows(tmp_path / "run") == rows(whole)


def test_truncated_newest_checkpoint_falls_back_and_changes_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: p.stat().st_mtime)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.warns(RuntimeWarning, match="damaged"):
        tiny_run.train(tmp_path)
    assert rows(tmp_path / "run") == rows(whole)


def test_sigterm_saves_and_the_same_call_continues(whole, tmp_path):
    class Terminated(tiny_run.LanguageModelling):
        def evaluate(self, model):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(model)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 5"):
        tiny_run.train(tmp_path, Terminated)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 6))
    tiny_run.train(tmp_path)
    assert rows(tmp_path / "run") == rows(whole)


def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result = tiny_run.train(tmp_path).result
    assert result["steps"] == 12
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_other_options_in_the_same_folder_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(OptionError, match=r"learning_rate was 0\.003, now 0\.1"):
        tiny_run.train(tmp_path, learning_rate=0.1)
    assert (tmp_path / "run" / "result.json").exists()
