"""Metrics: strict JSON lines, and one file whether or not the run was interrupted."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.training import metrics as module
from deqjax.training.metrics import MetricsWriter, read_metrics


def strict(line: str):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def write_steps(writer: MetricsWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        writer.write(step, loss=1.0 / step, tokens=step * 64)


def test_scalars_of_every_kind(tmp_path):
    third = jnp.float32(1 / 3)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(
            3,
            f32=third,
            bf16=jnp.bfloat16(0.5),
            i32=jnp.int32(7),
            np64=np.float64(0.1),
            zero_d=np.array(2.5),
            whole=2**40,
            flag=jnp.array(True),
            absent=None,
        )
    (row,) = read_metrics(tmp_path)
    assert row == {
        "step": 3,
        "f32": float(third),
        "bf16": 0.5,
        "i32": 7,
        "np64": 0.1,
        "zero_d": 2.5,
        "whole": 2**40,
        "flag": True,
        "absent": None,
    }
    assert isinstance(row["i32"], int) and row["flag"] is True


def test_nonfinite_values_are_null_and_named(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, loss=jnp.float32("nan"), norm=float("-inf"), ok=1.0)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert strict(line) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "ok": 1.0,
        "nonfinite": ["loss", "norm"],
    }


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in (1, 2):
        writer.write(step, loss=1.0)
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, step + 1))
    writer.sync()
    writer.close()
    with pytest.raises(ValueError):
        writer.write(3, loss=1.0)


@pytest.mark.parametrize("torn", [b"", b'{"step": 9, "lo', b'{"step": 2, "loss": 1.0}', b"\xff"])
def test_resuming_leaves_the_file_of_an_uninterrupted_run(tmp_path, torn):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with MetricsWriter(whole, tensorboard=False) as writer:
        write_steps(writer, 1, 9)
    with MetricsWriter(cut, tensorboard=False) as writer:
        write_steps(writer, 1, 7)
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with MetricsWriter.resume(cut, 4, tensorboard=False) as writer:
        assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4]
        write_steps(writer, 5, 9)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [path.name for path in cut.iterdir()] == ["metrics.jsonl"]


def test_resuming_replaces_the_file_in_one_move_or_not_at_all(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        write_steps(writer, 1, 5)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def interrupted(*args):
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", interrupted)
        with pytest.raises(OSError, match="stopped"):
            MetricsWriter.resume(tmp_path, 2, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    MetricsWriter.resume(tmp_path, 2, tensorboard=False).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_resuming_without_a_file_starts_one(tmp_path):
    with MetricsWriter.resume(tmp_path / "new", 0, tensorboard=False) as writer:
        writer.write(1, loss=1.0)
    assert len(read_metrics(tmp_path / "new" / "metrics.jsonl")) == 1


def test_going_on_without_resume_does_not_glue_onto_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, loss=1.0)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_broken_line_inside_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 of"):
        read_metrics(path)
    with pytest.warns(RuntimeWarning, match="dropped line 2"):
        MetricsWriter.resume(tmp_path, 5, tensorboard=False).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_wrong_values_write_nothing(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(TypeError, match=r"'loss' must be a scalar, and has shape \(2,\)"):
            writer.write(1, loss=jnp.ones(2))
        with pytest.raises(TypeError, match="'loss' must be a number, and is str"):
            writer.write(1, loss="low")
        with pytest.raises(ValueError, match="'nonfinite'"):
            writer.write(1, nonfinite=1.0)
    assert read_metrics(tmp_path) == []


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX")
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=2.0, bad=float("nan"), absent=None)
        writer.sync()
    with MetricsWriter.resume(tmp_path, 1, tensorboard=True) as writer:
        writer.write(2, loss=1.0)
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert data.count(b"loss") == 2 and b"bad" not in data and b"absent" not in data
    assert len(read_metrics(tmp_path)) == 2


def test_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=1.0)
    with pytest.raises(ImportError, match=r"pip install 'deqjax\[experiments\]'"):
        MetricsWriter(tmp_path, tensorboard=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
