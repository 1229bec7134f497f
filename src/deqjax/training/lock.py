"""One at a time: a lock on a folder that ends with its process, however that ends."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from .options import OptionError

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None

LOCK = ".lock"


class Lock:
    """The right to write into a folder, for one process of one machine or of several that share it.

    The kernel holds it (`flock`) and lets it go when the process ends, by kill -9 too: there is
    nothing to clean up. The file `.lock` stays where it is, and says who is at work. In a job of
    several processes the first takes it for all. Where a filesystem has no locks a warning says so.

    A context manager, which lets it go; `take` takes it.

    Args:
        directory: the folder, which need not exist yet.

    Examples:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> with Lock(directory) as one:
        ...     one.take()
        ...     Lock(directory).take()
        Traceback (most recent call last):
            ...
        deqjax.training.options.errors.OptionError: another process is at work on ...
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._file: int | None = None

    def take(self) -> None:
        """Make the folder if need be, and the lock ours until the end of the `with`.

        Raises:
            OptionError: somebody else has it, or the folder cannot be written.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Writable, and not the folder itself: a lock over NFS asks for that.
            file = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _no_folder(self._directory, error) from None
        try:
            self._lock(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        here = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        os.truncate(file, 0)
        os.pwrite(file, json.dumps(here).encode() + b"\n", 0)

    def _lock(self, file: int) -> None:
        try:
            if fcntl is None:
                raise OSError("this system has no flock")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise OptionError(
                f"another process is at work on {self._directory}{_who(file)}: wait until it ends, "
                "or choose another --name"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{self._directory} cannot be locked ({error.strerror or error}): nothing keeps a "
                "second process from writing there too",
                RuntimeWarning,
                stacklevel=4,
            )

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.truncate(self._file, 0)
            os.close(self._file)
            self._file = None


def _who(file: int) -> str:
    """Whom the file names, if it does."""
    try:
        found: dict[str, Any] = json.loads(os.pread(file, 1000, 0))
        return f" (process {found['pid']} on {found['host']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _no_folder(directory: Path, error: OSError) -> OptionError:
    """What keeps a folder from being made or written, in a sentence."""
    for path in (directory, *directory.parents):
        if path.exists() and not path.is_dir():
            return OptionError(f"{path} is a file: --runs and --name must lead to a folder")
    return OptionError(
        f"{directory} cannot be written ({error.strerror}): choose --runs where you may write"
    )
