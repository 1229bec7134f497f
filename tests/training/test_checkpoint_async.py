"""A save beside the training step: what it holds, when it is there, and how it fails."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import jax_array_handlers, type_handlers

from deqjax.training.checkpoints import CheckpointError, Checkpoints, manifest

TEMPLATE = {"w": jnp.zeros(1000), "n": np.zeros(1000), "key": jax.random.key(0)}


def tree(step: int) -> dict:
    return {"w": jnp.full(1000, float(step)), "n": np.full(1000, step), "key": jax.random.key(step)}


def assert_is(got: dict, step: int) -> None:
    assert (np.asarray(got["w"]) == step).all() and (got["n"] == step).all()
    assert (jax.random.key_data(got["key"]) == jax.random.key_data(jax.random.key(step))).all()


TEMPLATE["n"] = tree(0)["n"]


@pytest.fixture
def held(monkeypatch):
    """Nothing is written until this event is set."""
    event = threading.Event()
    for owner, name in (
        (jax_array_handlers, "_async_serialize_replica_slices"),
        (type_handlers.NumpyHandler, "_open_and_write"),
    ):
        real = getattr(owner, name)

        async def later(*args, real=real, **kwargs):
            await asyncio.to_thread(event.wait)
            return await real(*args, **kwargs)

        monkeypatch.setattr(owner, name, later)
    yield event
    event.set()


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.glob("step_*"))


def test_a_save_holds_the_values_it_was_given(tmp_path, held):
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        saved = tree(3)
        checkpoints.save(3, saved)
        assert names(tmp_path) == [], "it returned before anything was written"
        w = saved["w"]
        for _ in range(3):
            w = step(w)
        w.block_until_ready()
        saved["n"][:] = -1
        held.set()
        restored = checkpoints.restore(TEMPLATE)  # waits
    assert restored is not None
    assert_is(restored.tree, 3)
    assert (w == 6).all()


def test_one_save_at_a_time(tmp_path, held, monkeypatch):
    """The second save is what lets the first one write, by waiting for it."""
    with Checkpoints(tmp_path) as checkpoints:
        real = checkpoints.wait

        def wait():
            held.set()
            real()
            held.clear()

        checkpoints.save(1, tree(1))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "wait", wait)
            checkpoints.save(2, tree(2))
        assert names(tmp_path) == ["step_000000001"]
        held.set()
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_waits_is_on_the_disk(tmp_path, asynchronous):
    with Checkpoints(tmp_path, asynchronous=asynchronous) as checkpoints:
        checkpoints.save(1, tree(1), wait=asynchronous)
        assert names(tmp_path) == ["step_000000001"]
        assert not any(t.name == "deqjax-checkpoint" for t in threading.enumerate())


NEXT = {
    "save": lambda checkpoints: checkpoints.save(3, tree(3)),
    "restore": lambda checkpoints: checkpoints.restore(TEMPLATE),
    "steps": lambda checkpoints: checkpoints.steps(),
    "wait": lambda checkpoints: checkpoints.wait(),
    "close": lambda checkpoints: checkpoints.close(),
}


@pytest.mark.parametrize("call", NEXT)
def test_the_next_call_says_that_a_save_failed(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full)
        checkpoints.save(2, tree(2))
        with pytest.raises(CheckpointError, match=r"could not save step 2 .*No space left"):
            NEXT[call](checkpoints)
    if call != "close":
        assert checkpoints.steps() == [1], "it is said once"
        checkpoints.save(2, tree(2))
        checkpoints.close()
        assert names(tmp_path) == ["step_000000001", "step_000000002"]


PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
import jax.numpy as jnp
from deqjax.training.checkpoints import Checkpoints, manifest
folder, how = Path(sys.argv[1]), sys.argv[2]
checkpoints = Checkpoints(folder)
checkpoints.save(1, {"w": jnp.full(1000, 1.0)}, wait=True)
real, ended = manifest.write, threading.Event()
def write(*args):
    ended.wait()  # the main thread has nothing more to do
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fail":
        raise OSError(28, "No space left on device")
    real(*args)
manifest.write = write
checkpoints.save(2, {"w": jnp.full(1000, 2.0)})
ended.set()
"""


@pytest.mark.parametrize(
    ("how", "code", "said", "steps"),
    [
        ("end", 0, "", [1, 2]),
        pytest.param(
            "fail", 0, "error at exit: could not save step 2", [1], marks=pytest.mark.slow
        ),
        ("kill", -signal.SIGKILL, "", [1]),
    ],
)
def test_the_end_of_the_program(tmp_path, how, code, said, steps):
    """An end without `close` completes a save or says that it failed; a kill leaves the last."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if how != "fail" and "can't create new thread at interpreter shutdown" in done.stderr:
        # Since 3.12 Python starts no thread once the main one has ended; where Orbax still needs
        # one by then, the save fails, and says so.
        code, said, steps = 0, "error at exit: could not save step 2", [1]
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said) and bool(done.stderr) == bool(said), done.stderr
    with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.steps() == steps
        restored = checkpoints.restore({"w": jnp.zeros(1000)})
    assert restored is not None and restored.step == steps[-1]
    assert (restored.tree["w"] == steps[-1]).all()
