"""Arrays on disk: the one place that knows Orbax."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Arrays:
    """Writes and reads arrays by name, each process its own shards.

    Orbax's handler, and not its checkpointer or manager, whose barriers a process that failed does
    not reach, and the others wait (see docs/design.md).

    Raises:
        ImportError: Orbax is not installed.
    """

    def __init__(self):
        try:
            import orbax.checkpoint as orbax
            from etils import epath
        except ImportError as error:
            sentence = "checkpoints need Orbax: pip install 'deqjax[experiments]'"
            raise ImportError(sentence, name="orbax") from error
        self._orbax, self._path = orbax, epath.Path
        kinds = orbax.type_handlers
        # Without what Orbax's own registry adds: a file more about each array, and a share of every
        # replica in the writing, for which it slices on the device while the training step waits.
        array_handler = kinds.ArrayHandler(use_replica_parallel=False)
        self._handler = orbax.PyTreeCheckpointHandler(
            type_handler_registry=kinds.create_type_handler_registry(
                (jax.Array, array_handler), (np.ndarray, kinds.NumpyHandler())
            )
        )
        logging.getLogger("absl").addFilter(_is_no_repetition)

    def write(self, folder: Path, arrays: dict[str, Any]) -> Callable[[], None]:
        """Copy the arrays to the host and begin to write them; the result waits for the end.

        Every process calls it. What one process holds alone (a NumPy array, an array on its own
        devices) is taken from process 0; all others are written by those that hold them. On return
        the arrays may be changed, deleted or donated.

        Args:
            folder: exists, on all processes.
        """
        if jax.process_count() > 1:
            arrays = {
                name: np.asarray(array) if _is_local(array) else array
                for name, array in arrays.items()
                if not _is_local(array) or jax.process_index() == 0
            }
        if not arrays:  # Orbax refuses an empty tree
            return lambda: None
        save = self._handler.async_save(
            self._path(folder), args=self._orbax.args.PyTreeSave(arrays)
        )
        futures = _finished(save) or ()

        def wait() -> None:
            for future in futures:
                future.result()

        return wait

    def written_here(self, folder: Path) -> Iterator[Path]:
        """The files under `folder` that this process alone wrote, once they are complete."""
        return (folder / f"ocdbt.process_{jax.process_index()}").rglob("*")

    def join(self, folder: Path) -> None:
        """Make one index of what the processes wrote; process 0 does, when all are done."""
        if any(folder.iterdir()):
            self._handler.finalize(self._path(folder))

    def read(self, folder: Path, shardings: dict[str, Any], *, part: bool) -> dict[str, Any]:
        """Read arrays by name: laid out by the sharding given, or whole as NumPy for None.

        Args:
            part: whether there are others.
        """
        if not shardings:
            return {}
        whole = self._orbax.RestoreArgs(restore_type=np.ndarray)
        arguments = {
            name: whole
            if sharding is None
            else self._orbax.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)
            for name, sharding in shardings.items()
        }
        request = self._orbax.args.PyTreeRestore(
            item=dict.fromkeys(shardings, 0),
            restore_args=arguments,
            **({"partial_restore": True} if part else {}),  # which Orbax 0.11.0 does not know
        )
        return self._handler.restore(self._path(folder), args=request)

    def close(self) -> None:
        """Release what Orbax holds."""
        logging.getLogger("absl").removeFilter(_is_no_repetition)
        self._handler.close()


def _is_local(array: Any) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a notebook too, where the thread already runs a loop."""

    def run() -> Any:
        # Not asyncio.run: what it does at the end is not safe beside loops of other threads.
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _is_no_repetition(record: logging.LogRecord) -> bool:
    """False of the tracebacks that Orbax's threads log of the error that is raised."""
    return "_SignalingThread" not in str(record.msg)
