"""How the processes of one job agree, over the coordination service that `jax.distributed` keeps.

They wait for each other there and not in a collective: that would hold the devices while one
process evaluates, and a thread that writes must start none, since it would meet another process's
training step. Once all are there, the main thread hears what each says by one short collective; a
thread, from files in a folder that all can see.
"""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from .errors import CheckpointError, reason

# Milliseconds. A process that died is noticed by JAX, much sooner; this ends what waits for a
# process that lives and went another way.
_PATIENCE = 3_600_000
_made: collections.Counter[str] = collections.Counter()


class Processes:
    """All processes of the job, which make these objects, and call them, in the same order.

    Args:
        name: the same on every process.

    Raises:
        CheckpointError: there are several, and `jax.distributed` does not connect them.

    Examples:
        >>> Processes("votes").agree(lambda: 1, sum)  # the number of processes
        1
    """

    def __init__(self, name: str):
        self.index, self.count = jax.process_index(), jax.process_count()
        self._prefix, self._meetings = f"deqjax/{name}/{_made[name]}", 0
        _made[name] += 1
        if self.count > 1:
            from orbax.checkpoint import multihost  # JAX has a public barrier on devices alone

            if not jax.distributed.is_initialized():
                raise CheckpointError("several processes need jax.distributed.initialize() first")
            self._barrier = multihost.get_barrier_sync_fn()

    @property
    def first(self) -> bool:
        """Whether this is process 0, the one that decides."""
        return self.index == 0

    def agree(
        self,
        work: Callable[[], Any],
        decide: Callable[[list[Any]], Any],
        *,
        through: Path | None = None,
    ) -> Any:
        """`decide(what every process's work returned)`, computed by process 0, on all of them.

        Both return what JSON can hold. An exception in either is raised on every process: where it
        happened as it is, elsewhere as a `CheckpointError` that names the process.

        Args:
            through: for another thread than the main one, a folder that all processes see. It is
                deleted.
        """
        if self.count == 1:
            return decide([work()])
        mine, own = _outcome(work)
        found = self._told(mine, through)
        verdict = _failure(found)
        if verdict is None and self.first:
            verdict, own = _outcome(lambda: decide([word["value"] for word in found]))
            verdict = _failure([verdict]) or verdict
        # That of process 0 counts, whose `decide` may have swept away what the others said.
        verdict = self._told(verdict, through)[0]
        if through is not None:
            self._meet()  # all have read
            if self.first:
                shutil.rmtree(through, ignore_errors=True)
        if own is not None:
            raise own
        if "error" in verdict:
            raise CheckpointError(verdict["error"])
        return verdict["value"]

    def by_first(self, work: Callable[[], Any]) -> Any:
        """`work()`, done by process 0, on all of them."""
        return self.agree(lambda: work() if self.first else None, lambda found: found[0])

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What follows the block is for when it has succeeded on all processes; as in `agree`."""
        failed = []
        try:
            yield
        except Exception as error:
            failed.append(error)

        def again() -> None:
            for error in failed:
                raise error

        self.agree(again, lambda _: None)

    def _told(self, word: Any, through: Path | None) -> list[Any]:
        """What every process says."""
        said = json.dumps([self.index, word]).encode()
        if through is not None:
            files = [through / f"{self._meetings}.{k}" for k in range(self.count)]
            with contextlib.suppress(OSError):  # a file that is not there says so
                through.mkdir(exist_ok=True)
                files[self.index].write_bytes(said)
            self._meet()
            return [_read(file) for file in files]
        self._meet()
        lengths = multihost_utils.process_allgather(np.int32(len(said)))
        # Powers of two, for which few programs are compiled.
        row = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)
        row[: len(said)] = np.frombuffer(said, np.uint8)
        rows = multihost_utils.process_allgather(row)
        # JAX orders rows by devices, which need not be in the order of processes.
        told = dict(json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True))
        return [told[k] for k in range(self.count)]

    def _meet(self) -> None:
        """Return when all processes are here."""
        self._meetings += 1
        key, failed = f"{self._prefix}/{self._meetings}", []

        def wait() -> None:
            try:
                self._barrier(key=key, timeout_ms=_PATIENCE)
            except Exception as error:
                failed.append(error)

        if threading.current_thread() is threading.main_thread():
            # The barrier does not hear Ctrl-C, which waiting for a thread does.
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            thread.join()
        else:
            wait()
        if failed:
            raise CheckpointError(f"no word from the others: {reason(failed[0])}") from failed[0]


def _outcome(work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    try:
        return {"value": work()}, None
    except Exception as error:
        return {"error": reason(error)}, error


def _failure(words: list[dict[str, Any]]) -> dict[str, Any] | None:
    failed = (k for k, word in enumerate(words) if "error" in word)
    return next(({"error": f"process {k}: {words[k]['error']}"} for k in failed), None)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())[1]
    except (OSError, ValueError):  # ValueError: cut short
        return {"error": "it failed, and could not write why"}
