"""Arrays on disk: the one place that knows Orbax."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Arrays:
    """Writes and reads arrays by name, each process its own shards.

    Orbax's handler, and not its checkpointer: the checkpointer has barriers of its own, some of
    them computations on the devices, which a thread beside the training loop must not start.

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
        # One process writes a replicated array: to share it out, Orbax would slice it on the device
        # while the training step waits.
        array_handler = kinds.ArrayHandler(use_replica_parallel=False)
        self._handler = orbax.PyTreeCheckpointHandler(
            type_handler_registry=kinds.create_type_handler_registry(
                (jax.Array, array_handler), (np.ndarray, kinds.NumpyHandler())
            )
        )

    def write(self, folder: Path, arrays: dict[str, Any]) -> Callable[[], None]:
        """Copy the arrays to the host and begin to write them; the result waits for the end.

        Every process calls it. What one process holds alone (a NumPy array, an array on its own
        devices) is taken from process 0; all others are written by those that hold them. On
        return the arrays may be changed, deleted or donated.

        Args:
            folder: exists, on all processes.
        """
        if jax.process_count() > 1:
            arrays = {
                name: _taken_from_first(array)
                for name, array in arrays.items()
                if not _is_local(array) or jax.process_index() == 0
            }
        if not arrays:  # Orbax refuses an empty tree
            return lambda: None
        with contextlib.ExitStack() as until_waited:
            until_waited.enter_context(_one_report())
            arguments = self._orbax.args.PyTreeSave(arrays)
            futures = _finished(self._handler.async_save(self._path(folder), args=arguments))
            until_waited = until_waited.pop_all()

        def wait() -> None:
            with until_waited:
                for future in futures or ():
                    future.result()

        return wait

    def written_here(self, folder: Path) -> Iterator[Path]:
        """The files under `folder` that this process alone wrote, once they are complete."""
        return (folder / f"ocdbt.process_{jax.process_index()}").rglob("*")

    def join(self, folder: Path) -> None:
        """Make one index of what the processes wrote; process 0 does, when all are done."""
        if any(folder.iterdir()):
            self._handler.finalize(self._path(folder))

    def read(
        self, folder: Path, shardings: dict[str, Any], *, part: bool = False
    ) -> dict[str, Any]:
        """Read arrays by name: laid out by the sharding given, or whole as NumPy for None. Where
        they are a part of what is there, say so."""
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
            **({"partial_restore": True} if part else {}),
        )
        return self._handler.restore(self._path(folder), args=request)

    def close(self) -> None:
        """Release what Orbax holds."""
        self._handler.close()


def _is_local(array: Any) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _taken_from_first(array: Any) -> Any:
    return np.asarray(array) if _is_local(array) else array


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a notebook too, where the thread already runs a loop."""
    result: list[Any] = []

    def run() -> None:
        # Not asyncio.run: what it does at the end is not safe beside loops of other threads.
        loop = asyncio.new_event_loop()
        try:
            result.append(loop.run_until_complete(coroutine))
        except BaseException as error:
            result.append(error)
        finally:
            loop.close()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Keep Orbax's threads from logging, traceback by traceback, the error that is raised."""
    logger = logging.getLogger("absl")
    mute = lambda record: "_SignalingThread" not in str(record.msg)
    logger.addFilter(mute)
    try:
        yield
    finally:
        logger.removeFilter(mute)
