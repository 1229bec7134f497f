"""The best checkpoints survive the pruning, and a restart knows which they are."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.training.checkpoints import CheckpointError, Checkpoints

TEMPLATE = {"w": jnp.zeros(3)}


def save(checkpoints: Checkpoints, metrics: dict) -> None:
    for step, metric in metrics.items():
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, metric=metric)
    checkpoints.wait()


def flip(folder) -> None:
    path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_the_best_stay_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_best=2) as checkpoints:
        save(checkpoints, {1: 5.0, 2: 3.0, 3: 4.0, 4: None, 5: 9.0, 6: None})
        assert checkpoints.steps() == [2, 3, 5, 6]
        assert checkpoints.best == 2 and checkpoints.latest == 6
    with Checkpoints(tmp_path, keep=2, keep_best=1) as checkpoints:  # what a restart knows
        assert checkpoints.best == 2
        restored = checkpoints.restore(TEMPLATE, which="best")
        assert restored is not None
        assert (restored.step, restored.metric, restored.tree["w"][0]) == (2, 3.0, 2.0)
        latest = checkpoints.restore(TEMPLATE)
        assert latest is not None and (latest.step, latest.metric) == (6, None)
        save(checkpoints, {7: 2.5})
        assert checkpoints.steps() == [6, 7] and checkpoints.best == 7


def test_a_best_among_the_newest_is_kept_once(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=2) as checkpoints:
        save(checkpoints, {1: 3.0, 2: 2.0, 3: 1.0})
        assert checkpoints.steps() == [2, 3]
    with Checkpoints(tmp_path / "none", keep=1, keep_best=0) as checkpoints:
        save(checkpoints, {1: 1.0, 2: 2.0})
        assert checkpoints.steps() == [2]


def test_among_equals_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, {1: 1.0, 2: 1.0, 3: None})
        assert checkpoints.steps() == [2, 3] and checkpoints.best == 2


@pytest.mark.parametrize("metric", [None, math.nan, math.inf, -math.inf])
def test_without_a_finite_metric_no_candidate(tmp_path, metric):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best is None and checkpoints.restore(TEMPLATE, "best") is None
        save(checkpoints, {1: metric})
        assert checkpoints.best is None
        with pytest.raises(CheckpointError, match="saved with a metric"):
            checkpoints.restore(TEMPLATE, "best")
        save(checkpoints, {2: np.float32(0.5)})
        assert checkpoints.best == 2


@pytest.mark.parametrize("how", ["flipped", "no manifest"])
def test_a_damaged_best_gives_way_to_the_next_best(tmp_path, how):
    with Checkpoints(tmp_path, keep_best=2) as checkpoints:
        save(checkpoints, {1: 2.0, 2: 1.0, 3: 3.0})
        best = tmp_path / "step_000000002"
        if how == "flipped":
            flip(best)
        else:
            (best / "manifest.json").unlink()
        with pytest.warns(RuntimeWarning, match="skipped the damaged.*step_000000002"):
            restored = checkpoints.restore(TEMPLATE, "best")
        assert restored is not None and restored.step == 1
        assert checkpoints.best == 1
        save(checkpoints, {4: 4.0, 5: 5.0, 6: 6.0, 7: 7.0})
        assert checkpoints.steps() == [1, 3, 5, 6, 7], "it does not take a place among the best"


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep_best=-1"):
        Checkpoints(tmp_path, keep_best=-1)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="metric must be a number, not 'low'"):
            checkpoints.save(1, {}, metric="low")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'latest' or 'best'"):
            checkpoints.restore({}, "newest")  # type: ignore[arg-type]
