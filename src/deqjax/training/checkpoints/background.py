"""Work beside the main thread whose failure cannot be overlooked."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (its exit handler must be registered before ours)
import sys
import threading
from collections.abc import Callable


class Background:
    """One job at a time, on a thread of its own.

    Examples:
        >>> background, done = Background(), []
        >>> background.start(lambda: done.append("written"))
        >>> background.wait()
        >>> done
        ['written']
    """

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before; that one's exception is raised here."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="deqjax-checkpoint")
        _running.add(self)
        self._thread.start()

    def wait(self) -> None:
        """Return when the job is done. What it raised is raised here, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            _running.discard(self)
        error, self._error = self._error, None
        if error is not None:
            raise error


_running: set[Background] = set()


def _finish_at_exit() -> None:
    for background in list(_running):
        try:
            background.wait()
        except BaseException as error:
            print(f"error at exit: {error}", file=sys.stderr)


# Python ends its thread pools, which the writing needs, before it runs `atexit` handlers or joins
# threads. Only this registry, which the pools use too, runs earlier, the last one in first. It is
# still too late, since Python 3.12, for threads that the writing has yet to start: a program that
# ends within milliseconds of `save` then loses that save, and is told; `close` waits for it.
getattr(threading, "_register_atexit", atexit.register)(_finish_at_exit)
