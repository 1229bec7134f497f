"""Checkpoints on disk that are complete or absent, and say so themselves.

One checkpoint is one folder::

    step_000000120/
      arrays/          the arrays, written by Orbax, one entry a leaf, named by its number
      manifest.json    the leaves' paths, shapes and dtypes, your `info`, the size and SHA-256
                       of every other file, and the SHA-256 of the manifest itself

It is written under a name that no reader looks at, forced to the disk, and renamed. At the rename
it comes to exist, so a kill or a full disk leaves all of it or nothing. Disks also lose what was
complete, so `Checkpoints.restore` hashes every file before it believes one. Nothing is pickled.

This is the only module that imports Orbax, and it does so when a `Checkpoints` is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import operator
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FORMAT = "deqjax-checkpoint-1"
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_NAME = re.compile(r"step_(\d+)(?:\.(\d+))?")
# Folders under this prefix are half written or half deleted. No reader takes them, and the next
# save sweeps them away.
_PARTIAL = ".partial-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those on disk can be read."""


class CheckpointMismatch(CheckpointError):
    """A sound checkpoint holds another tree than the template asks for."""


class _Damaged(Exception):
    """What is wrong with one checkpoint folder, in words."""


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
        step: the step it was saved at.
        tree: the saved values in the template's structure.
        info: the JSON object given to `save`. JSON has no tuples and no integer keys, so those
            come back as lists and strings.
    """

    step: int
    tree: Any
    info: dict[str, Any]


class _Entry(NamedTuple):
    """A checkpoint folder. Ordered by age: a later attempt at one step is the newer."""

    step: int
    attempt: int
    path: Path


class Checkpoints:
    """The checkpoints of one run, in one directory, written by one process at a time.

    Leaves are arrays: `jax.Array` of any dtype with typed PRNG keys, `numpy.ndarray`, and NumPy
    scalars; any registered container may hold them. Values and dtypes come back bit for bit.
    Python numbers and strings belong in `info`.

    Not for exchanging models: a restore needs a template of the same tree. Without this class,
    Orbax reads the arrays, and the manifest says which number is which leaf.

    Args:
        directory: where the checkpoints live. Made by the first save.
        keep: how many good checkpoints stay; older ones are deleted after each save.

    Raises:
        ImportError: Orbax is not installed.
        ValueError: `keep` is below one.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> directory = tempfile.mkdtemp()
        >>> with Checkpoints(directory, keep=2) as checkpoints:
        ...     checkpoints.save(10, {"w": jnp.arange(3.0)}, {"position": 640})
        ...     restored = checkpoints.restore({"w": jnp.zeros(3)})
        >>> restored.step, restored.info, restored.tree["w"].tolist()
        (10, {'position': 640}, [0.0, 1.0, 2.0])
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 3):
        if operator.index(keep) < 1:
            raise ValueError(f"keep={keep} would delete every checkpoint; it must be at least 1")
        self.directory = Path(directory).absolute()
        self.keep = operator.index(keep)
        self._orbax = _import_orbax()
        self._writer = self._orbax.Checkpointer(self._orbax.PyTreeCheckpointHandler())
        # Folders whose hashes failed here. Pruning must not count them among the good ones.
        self._known_damaged: set[Path] = set()

    def save(self, step: int, tree: Any, info: dict[str, Any] | None = None) -> None:
        """Write one checkpoint, then delete those beyond `keep`.

        Returns when the checkpoint is on the disk. A step may be saved again: its earlier
        checkpoint is deleted once the new one is complete.

        Args:
            step: a number that grows along the run.
            tree: a pytree of arrays.
            info: what else a restart needs (position in the data, wall time), as a JSON object.

        Raises:
            CheckpointError: the write failed, on a full disk for example. What was half written
                is gone and the older checkpoints are as they were.
            TypeError: a leaf is not an array, or `info` is not JSON.
            ValueError: the step is negative, or older than a good checkpoint already there.
        """
        _refuse_many_processes()
        step = operator.index(step)
        info = _checked_info(info)
        if step < 0:
            raise ValueError(f"cannot save step {step}: steps count from 0")
        if (latest := self.latest) is not None and step < latest:
            raise ValueError(
                f"cannot save step {step}: {self.directory} already holds step {latest}; "
                "restore that one first, or use another directory"
            )
        leaves, stored = _describe_and_store(tree)
        attempts = [entry.attempt for entry in self._entries() if entry.step == step]
        suffix = f".{max(attempts) + 1}" if attempts else ""
        final = self.directory / f"step_{step:09d}{suffix}"
        partial = self.directory / (_PARTIAL + final.name)
        try:
            self._sweep()  # first, for the room that an interrupted save may still hold
            partial.mkdir(parents=True)
            if stored:  # Orbax refuses an empty tree
                with _one_report():
                    self._writer.save(partial / _ARRAYS, args=self._orbax.args.PyTreeSave(stored))
            _write_manifest(partial, {"step": step, "leaves": leaves, "info": info})
            os.rename(partial, final)
            self._known_damaged.discard(final)  # a pruned folder's name may come back
            _sync(self.directory)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not isinstance(error, Exception):
                raise  # a KeyboardInterrupt stays one
            raise CheckpointError(
                f"could not save step {step} in {self.directory}: {_reason(error)}; "
                "the older checkpoints are untouched"
            ) from error
        self._prune()

    def restore(self, template: Any) -> Restored | None:
        """Read the newest checkpoint that verifies, or None where there is no checkpoint at all.

        A damaged checkpoint is reported by a `RuntimeWarning` that says what is wrong with it, and
        the one before it is tried.

        Args:
            template: a pytree with the structure, shapes and dtypes of the saved one, whose leaves
                also say where the values go. A committed `jax.Array`, or a `jax.ShapeDtypeStruct`
                with a sharding: a `jax.Array` with that sharding. Any other `jax.Array` or
                `ShapeDtypeStruct`: an uncommitted one on the default device. A `numpy.ndarray` or
                NumPy scalar: the same kind again.

        Raises:
            CheckpointMismatch: the newest sound checkpoint holds another tree; the sentence names
                the first leaf that differs. An older checkpoint is not tried: a changed model must
                not restart silently from a stale or fresh state.
            CheckpointError: there are checkpoints, and every one is damaged.
        """
        _refuse_many_processes()
        for entry in reversed(entries := self._entries()):
            try:
                manifest = _read_manifest(entry.path, hashes=True)
            except _Damaged as why:
                self._known_damaged.add(entry.path)
                said = f"skipped the damaged checkpoint {entry.path}: {why}"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
            else:
                tree = self._read(entry, manifest["leaves"], template)
                return Restored(manifest["step"], tree, manifest["info"])
        if entries:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged ({len(entries)} tried, see the "
                "warnings); move them away to start afresh"
            )
        return None

    def steps(self) -> list[int]:
        """The steps of the good-looking checkpoints, oldest first.

        Good-looking: the manifest is whole and every file has its size. Only `restore` hashes.
        """
        return sorted({entry.step for entry in self._good()})

    @property
    def latest(self) -> int | None:
        """The newest of `steps()`, or None."""
        return max(self.steps(), default=None)

    def wait(self) -> None:
        """Return when every save is on the disk. Saves are synchronous: at once, today."""

    def close(self) -> None:
        """Wait, and release what Orbax holds. The object cannot save or restore afterwards."""
        self.wait()
        self._writer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _entries(self) -> list[_Entry]:
        if not self.directory.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted(_Entry(int(m[1]), int(m[2] or 0), path) for m, path in matches if m)

    def _good(self) -> list[_Entry]:
        good = []
        for entry in self._entries():
            if entry.path not in self._known_damaged:
                with contextlib.suppress(_Damaged):
                    _read_manifest(entry.path, hashes=False)
                    good.append(entry)
        return good

    def _prune(self) -> None:
        newest = {entry.step: entry for entry in self._good()}  # the last attempt at each step
        kept = [newest[step] for step in sorted(newest)[-self.keep :]]
        for entry in self._entries():
            superseded = entry.step in newest and entry < newest[entry.step]
            if superseded or (kept and entry < kept[0]):
                # Out of sight first: a kill amid the deletion must not leave what looks like a
                # damaged checkpoint. Failing is harmless, the next save tries again.
                with contextlib.suppress(OSError):
                    os.rename(entry.path, entry.path.with_name(_PARTIAL + entry.path.name))
        self._sweep()

    def _sweep(self) -> None:
        for path in self.directory.glob(_PARTIAL + "*"):
            shutil.rmtree(path, ignore_errors=True)

    def _read(self, entry: _Entry, leaves: list[dict[str, Any]], template: Any) -> Any:
        wanted, treedef = jax.tree_util.tree_flatten_with_path(template)
        if difference := _first_difference(leaves, [_describe(*pair) for pair in wanted]):
            raise CheckpointMismatch(
                f"the checkpoint of step {entry.step} in {self.directory} does not fit this model: "
                f"{difference}; use the configuration it was saved with, or another directory"
            )
        targets = (target for _, target in wanted)
        pairs = {_key(i): pair for i, pair in enumerate(zip(leaves, targets, strict=True))}
        stored_pairs = {key: pair for key, pair in pairs.items() if _has_bytes(pair[0])}
        arguments = {key: self._restore_args(*pair) for key, pair in stored_pairs.items()}
        names = dict.fromkeys(arguments, 0)
        request = self._orbax.args.PyTreeRestore(item=names, restore_args=arguments)
        try:
            stored = self._writer.restore(entry.path / _ARRAYS, args=request) if arguments else {}
        except Exception as error:
            raise CheckpointError(
                f"the files of {entry.path} are sound but could not be read: {_reason(error)}"
            ) from error
        values = [_placed(stored.get(key), *pair) for key, pair in pairs.items()]
        return jax.tree_util.tree_unflatten(treedef, values)

    def _restore_args(self, saved: dict[str, Any], target: Any) -> Any:
        """Sharded arrays are read shard by shard, all others whole and placed afterwards."""
        sharding = _sharding(target)
        if sharding is None or saved["prng"] or saved.get("weak"):
            return self._orbax.RestoreArgs(restore_type=np.ndarray)
        return self._orbax.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        sentence = "checkpoints need Orbax: pip install 'deqjax[experiments]'"
        raise ImportError(sentence, name="orbax") from error
    return orbax.checkpoint


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Keep Orbax's threads from logging, traceback by traceback, the error that `save` raises."""
    logger = logging.getLogger("absl")
    mute = lambda record: "_SignalingThread" not in str(record.msg)
    logger.addFilter(mute)
    try:
        yield
    finally:
        logger.removeFilter(mute)


def _refuse_many_processes() -> None:
    # Orbax already writes each process's shards into one folder. What is missing is the agreement
    # around it: one process writes the manifest and renames, the others wait at a barrier.
    if jax.process_count() > 1:
        raise NotImplementedError("Checkpoints works in one process; this job has several")


def _key(index: int) -> str:
    # A number and not the leaf's path: paths may be empty, repeated, or hold any character.
    return f"{index:06d}"


def _describe(path: Any, leaf: Any) -> dict[str, Any]:
    """The manifest's record of one leaf; the same for an array and a `ShapeDtypeStruct`."""
    name = jax.tree_util.keystr(path) or "(the whole tree)"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        kind = type(leaf).__name__
        raise TypeError(f"leaf {name} is {kind}, not an array; put Python values into info")
    dtype = leaf.dtype
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not is_key and (dtype.hasobject or dtype.type in (np.void, np.str_, np.bytes_)):
        raise TypeError(f"leaf {name} has dtype {dtype}; only arrays of numbers can be saved")
    return {"path": name, "shape": list(leaf.shape), "dtype": str(dtype), "prng": is_key}


def _has_bytes(description: dict[str, Any]) -> bool:
    # Orbax refuses arrays without elements; the manifest's shape and dtype say all of them.
    return 0 not in description["shape"]


def _describe_and_store(tree: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    descriptions: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        description = _describe(path, leaf)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"leaf {description['path']} is a ShapeDtypeStruct and has no values")
        if description["prng"]:
            description["impl"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        elif isinstance(leaf, jax.Array):
            # A weak type decides later promotions, so a restart that lost it could drift.
            description["weak"] = leaf.weak_type
        else:
            leaf = np.asarray(leaf)
        descriptions.append(description)
        if _has_bytes(description):
            stored[_key(index)] = leaf
    return descriptions, stored


def _first_difference(saved: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str | None:
    there, here = (
        {leaf["path"]: f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]" for leaf in leaves}
        for leaves in (saved, wanted)
    )
    for path in [*here, *there]:
        if path not in there:
            return f"leaf {path} is in the template and not in the checkpoint"
        if path not in here:
            return f"leaf {path} is in the checkpoint and not in the template"
        if there[path] != here[path]:
            return f"leaf {path} is {there[path]} there and {here[path]} in the template"
    same_order = [leaf["path"] for leaf in saved] == [leaf["path"] for leaf in wanted]
    return None if same_order else "its leaves come in another order"


def _sharding(target: Any) -> Any:
    """Where the template wants a value; None: it does not say."""
    # An uncommitted array is on the default device by chance. Committing its restored value there
    # would forbid mixing it with arrays that are laid out over a mesh.
    by_chance = isinstance(target, jax.Array) and not target.committed
    return None if by_chance else getattr(target, "sharding", None)


def _placed(value: Any, saved: dict[str, Any], target: Any) -> Any:
    """The stored value as the kind of leaf that the template has."""
    if not _has_bytes(saved):
        value = _without_elements(saved)
    if isinstance(target, np.generic):
        value = value[()]
    elif not isinstance(target, np.ndarray):
        if saved["prng"]:
            value = jax.random.wrap_key_data(jnp.array(value), impl=saved["impl"])
        elif isinstance(value, np.ndarray):
            value = _unplaced(value, weak=saved.get("weak", False))
        if (sharding := _sharding(target)) is not None:
            value = jax.device_put(value, sharding)
    if str(value.dtype) != saved["dtype"]:  # int64 into a JAX without x64, for one
        raise CheckpointError(
            f"leaf {saved['path']} was saved as {saved['dtype']} and would come back as "
            f"{value.dtype}; set jax_enable_x64 as it was, or give a numpy.ndarray in the template"
        )
    return value


def _without_elements(saved: dict[str, Any]) -> np.ndarray:
    if not saved["prng"]:
        return np.zeros(saved["shape"], jnp.dtype(saved["dtype"]))
    one = jax.random.key_data(jax.random.key(0, impl=saved["impl"]))
    return np.zeros((*saved["shape"], *one.shape), one.dtype)


def _unplaced(value: np.ndarray, *, weak: bool) -> jax.Array:
    if weak and value.ndim == 0:
        scalar = jnp.asarray(value.item())  # a Python scalar is how JAX makes a weak type
        if scalar.dtype == value.dtype and np.asarray(scalar).tobytes() == value.tobytes():
            return scalar
    return jnp.array(value, copy=True)


def _checked_info(info: dict[str, Any] | None) -> dict[str, Any]:
    if not isinstance(info, dict | None):
        raise TypeError(f"info must be a JSON object, not {type(info).__name__}")
    try:
        return json.loads(json.dumps(info or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"info must be a JSON object: {error}") from error


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Sync every file under the folder, and write down what each must be from now on."""
    files, folders = {}, [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            _sync(path)
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            files[name] = {"bytes": size, "sha256": _hash_file(path)}
    manifest = {"format": _FORMAT, **manifest, "files": files}
    manifest["sha256"] = _digest(manifest)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(folder / _MANIFEST)
    for path in folders:
        _sync(path)


def _read_manifest(folder: Path, *, hashes: bool) -> dict[str, Any]:
    """The manifest, once the folder agrees with it: in sizes, and where asked in every byte."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
            raise _Damaged(f"{_MANIFEST} does not match its own SHA-256")
        if manifest["format"] != _FORMAT:
            raise _Damaged(f"its format is {manifest['format']!r}, this version reads {_FORMAT!r}")
        for name, file in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != file["bytes"]:
                raise _Damaged(f"{name} has {size} bytes instead of {file['bytes']}")
            if hashes and _hash_file(folder / name) != file["sha256"]:
                raise _Damaged(f"{name} does not match its SHA-256")
    except FileNotFoundError as error:
        raise _Damaged(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise _Damaged(f"it cannot be read ({_reason(error)})") from error
    return manifest


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if code := re.search(r"os_error_code='(\d+)'", text):  # how TensorStore reports one
        return os.strerror(int(code[1]))
    return text.splitlines()[0] if text else type(error).__name__
