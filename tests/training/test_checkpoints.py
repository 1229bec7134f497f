"""Checkpoints: what went in comes out bit for bit, and nothing damaged is ever taken."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqjax.training.checkpoints import (
    CheckpointError,
    CheckpointMismatch,
    Checkpoints,
    Restored,
    manifest,
    shelf,
    store,
)


class Pair(NamedTuple):
    left: object
    right: object


def state(step: int) -> dict:
    """A small tree whose every value says its step."""
    return {"w": jnp.full((4, 3), step, jnp.float32), "n": np.arange(5) + step}


def bits(leaf) -> bytes:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert bits(a) == bits(b), path


def restore(checkpoints: Checkpoints, template) -> Restored:
    restored = checkpoints.restore(template)
    assert restored is not None
    return restored


def restore_step(checkpoints: Checkpoints) -> int:
    """The restored step, after checking that the values are those of that step."""
    restored = restore(checkpoints, state(0))
    assert_same(restored.tree, state(restored.step))
    assert restored.info == {"position": restored.step * 64}
    return restored.step


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, state(step), {"position": step * 64})
    checkpoints.wait()


def newest_folder(directory):
    return max(directory.glob("step_*"))


# --- round trips ----------------------------------------------------------------------------------


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1], np.uint32).view(np.float32)
    tree = {
        "nan payloads, -0.0, denormal": (jnp.asarray(odd), odd),
        "only -0.0": jnp.full(3, -0.0),
        "only zero": jnp.zeros(3),
        "bfloat16": jnp.linspace(-3, 3, 7).astype(jnp.bfloat16),
        "float8": jnp.ones(2, jnp.float8_e4m3fn),
        "int4": jnp.array([-8, 7], jnp.int4),
        "bool": jnp.array([True, False]),
        "complex": np.array([1 + 2j], np.complex64),
        "float64": np.array([np.pi]),
        "transposed": np.arange(6).reshape(2, 3).T,
        "0-d": (jnp.int32(7), np.array(2.5, np.float16), np.float32(-1.5)),
        "no elements": (jnp.zeros((0, 3), jnp.bfloat16), np.zeros((2, 0), np.int8)),
        "keys": [jax.random.key(3), jax.random.split(jax.random.key(4, impl="rbg"), 5)],
        "no keys": jax.random.split(jax.random.key(3), 2)[:0],
        "containers": {"empty": {}, "list": [], "none": None, "pair": Pair(jnp.ones(1), ())},
        "": {"/a b": jnp.ones(()), "..": jnp.zeros(()), "é\n": [{1: jnp.ones(2)}, jnp.ones(3)]},
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, tree, {"x": 1.5, "name": "é", "nested": [1, None]})
        template = jax.tree.map(
            lambda x: x if isinstance(x, (np.ndarray, np.generic)) else jnp.zeros_like(x), tree
        )
        restored = restore(checkpoints, template)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree["keys"])
    assert restored.step == 7
    assert restored.info == {"x": 1.5, "name": "é", "nested": [1, None]}
    assert_same(restored.tree, tree)
    kinds = [type(x) for x in jax.tree.leaves(restored.tree)]
    assert kinds == [type(x) for x in jax.tree.leaves(tree)]
    assert jax.random.bits(restored.tree["keys"][0]) == jax.random.bits(tree["keys"][0])
    assert abstract[0].dtype == restored.tree["keys"][0].dtype


@pytest.mark.parametrize("tree", [{}, None, jnp.arange(3.0), jnp.zeros((0,)), jax.random.key(1)])
def test_trees_without_a_container_or_without_bytes(tmp_path, tree):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        restored = restore(checkpoints, tree)
    assert_same(restored.tree, tree)
    assert restored.info == {}


def test_nnx_and_optax_states(tmp_path):
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    params = nnx.state(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    moments = optimizer.init(nnx.state(model, nnx.Param))
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    _, moments = optimizer.update(gradient, moments, nnx.state(model, nnx.Param))
    tree = {"model": params, "optimizer": moments}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        restored = restore(checkpoints, jax.eval_shape(lambda: tree))
    assert_same(restored.tree, tree)


def test_shardings_and_commitment_follow_the_template(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    keys = jax.random.split(jax.random.key(0), 4)
    tree = {
        "laid out": jax.device_put(jnp.arange(8.0), spread),
        "abstract": jnp.ones(4),
        "free": jnp.ones(4),
        "keys": jax.device_put(keys, spread),
    }
    template = dict(tree, abstract=jax.ShapeDtypeStruct((4,), jnp.float32, sharding=spread))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        restored = restore(checkpoints, template).tree
    assert_same(restored, tree)
    assert restored["laid out"].sharding == spread and restored["laid out"].committed
    assert restored["abstract"].sharding == spread
    assert restored["keys"].sharding == spread
    assert not restored["free"].committed


def test_a_weak_type_survives_because_it_decides_promotions(tmp_path):
    device = jax.devices()[0]
    tree = {"weak": jnp.asarray(0.1), "strong": jnp.float32(0.1)}
    tree["weak and committed"] = jax.device_put(tree["weak"], device)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        restored = restore(checkpoints, tree).tree
    half = jnp.ones((), jnp.bfloat16)
    assert (half * restored["weak"]).dtype == jnp.bfloat16
    assert (half * restored["weak and committed"]).dtype == jnp.bfloat16
    assert (half * restored["strong"]).dtype == jnp.float32
    assert_same(restored, tree)


def test_a_part_of_a_tree_is_read_by_its_paths(tmp_path):
    whole = {"model": state(3), "optimiser": (np.ones(7), jax.random.key(1))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, whole)
        part = {"model": state(0), "optimiser": ()}
        found = checkpoints.restore(part, part=True)
        assert found is not None
        assert_same(found.tree, {"model": state(3), "optimiser": ()})
        with pytest.raises(CheckpointMismatch, match="is in the checkpoint and not in the templ"):
            checkpoints.restore(part)
        for other in ({"model": {"v": np.ones(2)}}, {"model": {"w": jnp.zeros((4, 2))}}):
            with pytest.raises(CheckpointMismatch):
                checkpoints.restore(other, part=True)


def test_no_file_is_a_pickle(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not path.read_bytes().startswith(b"\x80"), path  # the first opcode of protocol 2+


# --- which checkpoint is taken --------------------------------------------------------------------


def test_nothing_there_is_none(tmp_path):
    with Checkpoints(tmp_path / "not made yet") as checkpoints:
        assert checkpoints.restore(state(0)) is None
        assert checkpoints.steps() == [] and checkpoints.latest is None
    assert not (tmp_path / "not made yet").exists()


def test_keep_deletes_the_oldest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2, 3, 10)
        assert checkpoints.steps() == [3, 10] and checkpoints.latest == 10
        assert restore_step(checkpoints) == 10
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_saved_again_replaces_the_earlier(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2)
        for value in (5.0, 6.0):
            checkpoints.save(2, {"w": jnp.array(value)})
        assert checkpoints.steps() == [1, 2]
        assert restore(checkpoints, {"w": jnp.array(0.0)}).tree["w"] == 6.0
    assert len(list(tmp_path.iterdir())) == 2


def damage(path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_damage_to_any_file_falls_back_to_the_previous(tmp_path, how):
    sound = tmp_path / "sound"
    with Checkpoints(sound) as checkpoints:
        save(checkpoints, 1, 2)
    folder = newest_folder(sound)
    files = [path.relative_to(sound) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for number, file in enumerate(files):
        case = tmp_path / str(number)
        shutil.copytree(sound, case)
        damage(case / file, how)
        with Checkpoints(case) as checkpoints:
            if how != "flipped":
                assert checkpoints.steps() == [1], "sizes are looked at without reading the files"
            with pytest.warns(RuntimeWarning, match=f"skipped the damaged.*{folder.name}"):
                assert restore_step(checkpoints) == 1, file
            assert checkpoints.steps() == [1], "what restore found out is remembered"


def test_going_on_after_damage_replaces_it_and_keeps_the_good(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2)
    damage(next((newest_folder(tmp_path) / "arrays").rglob("d/*")), "flipped")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.warns(RuntimeWarning, match="SHA-256"):
            assert restore_step(checkpoints) == 1
        save(checkpoints, 2)
        assert checkpoints.steps() == [1, 2]
        assert restore_step(checkpoints) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2, 4)
        damage(next((newest_folder(tmp_path) / "arrays").rglob("d/*")), "flipped")
        with pytest.warns(RuntimeWarning, match="SHA-256"):
            assert restore_step(checkpoints) == 2
        save(checkpoints, 3)  # before the damaged step 4, and allowed
        assert checkpoints.steps() == [2, 3]
        save(checkpoints, 5)
        assert checkpoints.steps() == [3, 5]


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        (newest_folder(tmp_path) / "manifest.json").unlink()
        with (
            pytest.warns(RuntimeWarning, match=r"manifest\.json is missing"),
            pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged"),
        ):
            checkpoints.restore(state(0))


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            {"n": np.arange(5), "w": jnp.zeros((4, 2))},
            r"leaf \['w'\] is float32\[4,3\] there and float32\[4,2\]",
        ),
        ({"n": np.arange(5), "w": jnp.zeros((4, 3), jnp.bfloat16)}, r"bfloat16\[4,3\]"),
        ({"n": np.arange(5), "w": jax.random.key(0)}, r"key<fry>\[\]"),
        ({"n": np.arange(5)}, r"leaf \['w'\] is in the checkpoint and not in the template"),
        ({**state(0), "b": jnp.zeros(1)}, r"leaf \['b'\] is in the template and not in the"),
        ([np.arange(5), jnp.zeros((4, 3))], r"leaf \[0\] is in the template"),
    ],
)
def test_another_model_is_refused_by_its_first_leaf(tmp_path, template, sentence):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(CheckpointMismatch, match=sentence):
            checkpoints.restore(template)


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"leaf \['lr'\] is float, not an array"):
            checkpoints.save(1, {"lr": 0.1})
        with pytest.raises(TypeError, match="only arrays of numbers"):
            checkpoints.save(1, {"text": np.array(["a"])})
        with pytest.raises(TypeError, match="only arrays of numbers"):
            checkpoints.save(1, {"object": np.array([{}])})
        with pytest.raises(TypeError, match="ShapeDtypeStruct"):
            checkpoints.save(1, jax.ShapeDtypeStruct((), jnp.float32))
        bad: list[Any] = [{"x": float("nan")}, {"x": object()}, [1]]
        for info in bad:
            with pytest.raises(TypeError, match="info must be a JSON object"):
                checkpoints.save(1, {}, info)
        with pytest.raises(ValueError, match="cannot save step -1"):
            checkpoints.save(-1, {})
        assert not list(tmp_path.iterdir())
        save(checkpoints, 5)
        with pytest.raises(ValueError, match="already holds step 5"):
            save(checkpoints, 4)


def test_without_orbax_one_sentence(tmp_path, monkeypatch):
    for name in ("orbax", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'deqjax\[experiments\]'"):
        Checkpoints(tmp_path)


# --- interrupted saves ----------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir"])
def test_a_full_disk_leaves_the_older_ones_and_no_litter(tmp_path, monkeypatch, call, asynchronous):
    with Checkpoints(tmp_path, asynchronous=asynchronous) as checkpoints:
        save(checkpoints, 1)

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(CheckpointError, match="could not save step 2") as caught:
                save(checkpoints, 2)
        assert str(caught.value).endswith("; the older checkpoints are untouched")
        assert "No space left on device" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]
        assert restore_step(checkpoints) == 1
        save(checkpoints, 2)
        assert restore_step(checkpoints) == 2


def test_an_interrupt_stays_an_interrupt(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        monkeypatch.setattr(manifest, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 1)
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Stands for a process that ends where it is: nothing after it runs, no cleanup either."""


def test_a_kill_at_any_call_leaves_old_or_new(tmp_path, monkeypatch):
    """Die at the n-th thing a save does to the disk, for every n that a save has."""
    outcomes = []
    for n in range(200):
        directory = tmp_path / str(n)
        checkpoints = Checkpoints(directory, keep=1, asynchronous=False)
        save(checkpoints, 1)
        calls = itertools.count()

        def dies(real, n=n, calls=calls):
            def call(*args, **kwargs):
                if next(calls) >= n:
                    raise Killed
                return real(*args, **kwargs)

            return call

        # Only these modules' calls: an exception inside the array store's threads is no kill. The
        # real kills below cover those.
        with monkeypatch.context() as patch:
            for module, real, name in (
                (manifest, os, "fsync"),
                (shelf, os, "rename"),
                (shelf, shutil, "rmtree"),
                (store, shutil, "rmtree"),
            ):
                changed = {**vars(real), name: dies(getattr(real, name))}
                patch.setattr(module, real.__name__, types.SimpleNamespace(**changed))
            for name in ("write", "join"):
                patch.setattr(checkpoints._arrays, name, dies(getattr(checkpoints._arrays, name)))
            try:
                save(checkpoints, 2)
                died = False
            except Killed:
                died = True
        with Checkpoints(directory, keep=1) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing may even look damaged
            outcomes.append(restore_step(checkpoints))
            save(checkpoints, 2)  # over what the dead process left
            assert restore_step(checkpoints) == 2
        assert len(list(directory.iterdir())) == 1
        if not died:
            break
    assert not died and len(outcomes) > 10
    assert outcomes[0] == 1 and outcomes[-1] == 2
    assert outcomes == sorted(outcomes), "old until the rename, new from then on"


SAVE_FOR_EVER = """
import sys
import jax.numpy as jnp, numpy as np
from deqjax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(int(sys.argv[2]), 10**6):
    tree = {"w": jnp.full((4, 3), step, jnp.float32), "n": np.arange(5) + step}
    checkpoints.save(step, tree, {"position": step * 64})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_real_kills_in_the_middle_of_saving(tmp_path):
    delays = random.Random(0)
    step = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path), str(step + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for n in (1, 2):  # the second begins when the first is on the disk
            assert process.stdout.readline().strip() == str(step + n)
        time.sleep(delays.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        said = int(lines[-1]) if lines else step + 2
        with Checkpoints(tmp_path, keep=2) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("error")
            step = restore_step(checkpoints)
        assert said - 1 <= step <= said + 1, "at most the save under way is lost"


TOO_LARGE = """
import resource, signal, sys
import jax.numpy as jnp
from deqjax.training.checkpoints import CheckpointError, Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": jnp.arange(10.0)}, wait=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
import numpy as np
try:
    checkpoints.save(2, {"w": np.random.default_rng(0).random(100_000)})
    checkpoints.wait()
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_write_that_fails_inside_the_array_store(tmp_path):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    sentence = done.stdout.strip()
    assert sentence.startswith("could not save step 2 in ")
    assert sentence.endswith(": File too large; the older checkpoints are untouched")
    assert done.stderr == "", "the exception is the report"
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_the_manifest_is_plain_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    folder = newest_folder(tmp_path)
    written = json.loads((folder / "manifest.json").read_text())
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(written["files"]) == present - {"manifest.json"}
    assert written["info"] == {"position": 64}
