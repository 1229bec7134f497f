"""Which checkpoints exist: saving, choosing, restoring, deleting."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from . import leaves as leaves_
from . import manifest as manifest_
from .arrays import Arrays
from .background import Background
from .errors import CheckpointError, CheckpointMismatch, reason
from .processes import Processes
from .shelf import Shelf, ranked

_ARRAYS = "arrays"


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
        step: the step it was saved at.
        tree: the saved values in the template's structure.
        info: the JSON object given to `save`. JSON has no tuples and no integer keys, so those
            come back as lists and strings.
        metric: the metric given to `save`, or None.
    """

    step: int
    tree: Any
    info: dict[str, Any]
    metric: float | None = None


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Leaves are arrays: `jax.Array` of any dtype with typed PRNG keys, `numpy.ndarray`, and NumPy
    scalars; any registered container may hold them. Values and dtypes come back bit for bit.
    Python numbers and strings belong in `info`.

    In a job of several processes all of them make the object and call `save`, `restore`, `wait`
    and `close` in the same order, with the same tree, on one directory that all can see. An array
    that is spread over processes is written by those that hold it. What each process holds for
    itself (a NumPy array, an array on its own devices) is taken from process 0, so it should be
    the same everywhere. All processes restore the same checkpoint, on however many devices.

    Not for exchanging models: a restore needs a template of the same tree. Without this class,
    Orbax reads the arrays, and the manifest says which number is which leaf.

    Args:
        directory: where the checkpoints live. Made by the first save.
        keep: how many of the newest good checkpoints stay; older ones are deleted after each save.
        keep_best: how many of those with the lowest metric stay besides, however old.
        asynchronous: whether `save` returns while a thread still writes.

    Raises:
        ImportError: Orbax is not installed.
        ValueError: `keep` is below one, or `keep_best` below zero.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> directory = tempfile.mkdtemp()
        >>> with Checkpoints(directory, keep=1, keep_best=1) as checkpoints:
        ...     for step, loss in [(10, 0.5), (20, 0.3), (30, 0.4)]:
        ...         tree = {"w": jnp.full(2, float(step))}
        ...         checkpoints.save(step, tree, {"position": 64 * step}, metric=loss)
        ...     checkpoints.steps(), checkpoints.best
        ...     restored = checkpoints.restore({"w": jnp.zeros(2)})
        ([20, 30], 20)
        >>> restored.step, restored.info, restored.tree["w"].tolist()
        (30, {'position': 1920}, [30.0, 30.0])
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        keep_best: int = 1,
        *,
        asynchronous: bool = True,
    ):
        self.directory = Path(directory).absolute()
        self.keep, self.keep_best = operator.index(keep), operator.index(keep_best)
        self.asynchronous = asynchronous
        if self.keep < 1:
            raise ValueError(f"keep={keep} would delete every checkpoint; it must be at least 1")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={keep_best} must be at least 0, which keeps none")
        self._arrays = Arrays()
        self._background = Background()
        self._processes = Processes(self.directory.name)
        self._shelf = Shelf(self.directory)

    def save(
        self,
        step: int,
        tree: Any,
        info: dict[str, Any] | None = None,
        *,
        metric: float | None = None,
        wait: bool = False,
    ) -> None:
        """Write one checkpoint, then delete those that need not be kept.

        Returns when the values have been copied: the arrays may be donated to the next step. A
        thread writes, hashes and renames; a kill amid that leaves the checkpoints before. One save
        is under way at a time: the next one waits for it. A step may be saved again: its earlier
        checkpoint is deleted once the new one is complete.

        Args:
            step: a number that grows along the run.
            tree: a pytree of arrays.
            info: what else a restart needs (position in the data, wall time), as a JSON object.
            metric: how good it is, lower is better; None or not finite: no candidate for the best.
            wait: return when the checkpoint is on the disk, as with `asynchronous=False`. For a
                process that is about to be stopped.

        Raises:
            CheckpointError: the write failed, on a full disk for example. What was half written
                is gone and the older checkpoints are as they were. If a thread wrote, the next
                `save`, `restore`, `wait` or `close` says so, and does nothing else.
            TypeError: a leaf is not an array, `info` is not JSON, or `metric` is not a number.
            ValueError: the step is negative, or older than a good checkpoint already there.
        """
        self.wait()
        job = self._begin(step, tree, info, metric)
        if wait or not self.asynchronous:
            job()
        else:
            self._background.start(job)

    def restore(
        self, template: Any, which: Literal["latest", "best"] = "latest", *, part: bool = False
    ) -> Restored | None:
        """Read the newest checkpoint that verifies, or None where there is no checkpoint at all.

        A damaged checkpoint is reported by a `RuntimeWarning` that says what is wrong with it, and
        the one before it is tried.

        Args:
            template: a pytree with the structure, shapes and dtypes of the saved one, whose leaves
                also say where the values go. A committed `jax.Array`, or a `jax.ShapeDtypeStruct`
                with a sharding: a `jax.Array` with that sharding, whatever it was saved with. Any
                other `jax.Array` or `ShapeDtypeStruct`: an uncommitted one on the default device.
                A `numpy.ndarray` or NumPy scalar: the same kind again.
            which: "best" takes the lowest metric first, and then the next lowest.
            part: read the leaves of the template alone, each by its path; others may be there.

        Raises:
            CheckpointMismatch: the newest sound checkpoint holds another tree; the sentence names
                the first leaf that differs. An older checkpoint is not tried: a changed model must
                not restart silently from a stale or fresh state.
            CheckpointError: there are checkpoints, and every one is damaged, or none has a metric
                when the best is asked for; or the last `save` failed.
        """
        if which not in ("latest", "best"):
            raise ValueError(f"which={which!r} must be 'latest' or 'best'")
        self.wait()
        processes = self._processes
        share = processes.index, processes.count
        one_of = lambda problems: next(filter(None, problems), None)
        names = processes.by_first(lambda: self._shelf.candidates(which))
        for name in names:
            folder = self.directory / name
            look = partial(manifest_.problem, folder, share=share)
            if (problem := processes.agree(look, one_of)) is None:
                return self._read(folder, template, part)
            self._shelf.known_damaged.add(folder)
            said = f"skipped the damaged checkpoint {folder}: {problem}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        if names:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged ({len(names)} tried, see the "
                "warnings); move them away to start afresh"
            )
        return None

    def steps(self) -> list[int]:
        """The steps of the good-looking checkpoints, oldest first.

        Good-looking: the manifest is whole and every file has its size. Only `restore` hashes.
        """
        self.wait()
        return [entry.step for entry in self._shelf.good()]

    @property
    def latest(self) -> int | None:
        """The newest of `steps()`, or None."""
        return max(self.steps(), default=None)

    @property
    def best(self) -> int | None:
        """That of `steps()` with the lowest metric, the newest among equals; or None."""
        self.wait()
        return next((entry.step for entry in ranked(self._shelf.good())), None)

    def wait(self) -> None:
        """Return when every save is on the disk.

        Raises:
            CheckpointError: the last one failed.
        """
        self._background.wait()

    def close(self) -> None:
        """Wait, and release what Orbax holds. The object cannot save or restore afterwards.

        End a program with this, or use the object in a `with`: since Python 3.12 a save that is
        still being written when the main thread ends may fail, which is printed.
        """
        try:
            self.wait()
        finally:
            self._arrays.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- saving -----------------------------------------------------------------------------------

    def _begin(self, step: Any, tree: Any, info: Any, metric: Any) -> Callable[[], None]:
        """Copy the values; the result does the rest."""
        with self._processes.together():
            step = operator.index(step)
            leaves, stored = leaves_.described_and_stored(tree)
            content = {"step": step, "leaves": leaves}
            content |= {"info": _checked_info(info), "metric": _checked_metric(metric)}
        seen = hashlib.sha256(json.dumps([step, leaves], sort_keys=True).encode()).hexdigest()
        names = self._processes.agree(lambda: seen, partial(self._reserve, step))
        final, folder = (self.directory / name for name in names)
        arrays, words = folder / _ARRAYS, folder.with_name(f"{folder.name}-words")

        def make() -> None:
            self._shelf.sweep()  # first, for the room that an interrupted save may still hold
            arrays.mkdir(parents=True)

        def own_files() -> manifest_.Files:
            written()
            return manifest_.sealed(folder, self._arrays.written_here(arrays))

        def publish(sealed: list[manifest_.Files]) -> None:
            self._arrays.join(arrays)
            manifest_.write(folder, content, {k: v for files in sealed for k, v in files.items()})
            self._shelf.publish(folder, final)
            self._shelf.prune(self.keep, self.keep_best)

        def complete() -> None:
            with self._cleanly(step, folder):
                self._processes.agree(own_files, publish, through=words)
            self._shelf.known_damaged.discard(final)

        with self._cleanly(step, folder):
            self._processes.by_first(make)
            try:
                written = self._arrays.write(arrays, stored)
            except Exception as error:  # for the other processes to hear of, in `complete`
                written = partial(_throw, error)
        return complete

    def _reserve(self, step: int, seen: list[str]) -> tuple[str, str]:
        if (other := next((k for k, it in enumerate(seen) if it != seen[0]), None)) is not None:
            raise ValueError(f"process {other} saves another step or another tree than process 0")
        return self._shelf.reserve(step)

    @contextlib.contextmanager
    def _cleanly(self, step: int, folder: Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self._processes.first:
                shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, Exception):
                raise  # a KeyboardInterrupt stays one
            raise CheckpointError(
                f"could not save step {step} in {self.directory}: {reason(error)}; "
                "the older checkpoints are untouched"
            ) from error

    # --- restoring --------------------------------------------------------------------------------

    def _read(self, folder: Path, template: Any, part: bool) -> Restored:
        targets, treedef = jax.tree_util.tree_flatten_with_path(template)
        with self._processes.together():
            manifest = manifest_.read(folder)
            wanted = [leaves_.describe(*pair) for pair in targets]
            saved, difference = leaves_.picked(manifest["leaves"], wanted, part=part)
            if difference:
                raise CheckpointMismatch(
                    f"the checkpoint of step {manifest['step']} in {self.directory} does not fit "
                    f"this model: {difference}; use the configuration it was saved with, or "
                    "another directory"
                )
        # All fit, so all lay out the same values, which may take a collective.
        with self._processes.together():
            triples = zip(saved.items(), targets, strict=True)
            pairs = {name: (leaf, target) for (name, leaf), (_, target) in triples}
            written = {k: pair for k, pair in pairs.items() if leaves_.has_bytes(pair[0])}
            shardings = {k: leaves_.read_sharded(*pair) for k, pair in written.items()}
            try:
                stored = self._arrays.read(folder / _ARRAYS, shardings, part=part)
            except Exception as error:
                raise CheckpointError(
                    f"the files of {folder} are sound but could not be read: {reason(error)}"
                ) from error
            leaves = [leaves_.placed(stored.get(name), *pair) for name, pair in pairs.items()]
        tree = jax.tree_util.tree_unflatten(treedef, leaves)
        return Restored(manifest["step"], tree, manifest["info"], manifest.get("metric"))


def _throw(error: Exception) -> None:
    raise error


def _checked_info(info: Any) -> dict[str, Any]:
    if not isinstance(info, dict | None):
        raise TypeError(f"info must be a JSON object, not {type(info).__name__}")
    try:
        return json.loads(json.dumps(info or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"info must be a JSON object: {error}") from error


def _checked_metric(metric: Any) -> float | None:
    try:
        number = None if metric is None else float(metric)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metric must be a number, not {metric!r}") from error
    return number if number is not None and math.isfinite(number) else None
