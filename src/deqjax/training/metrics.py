"""Metrics of a run: one JSON object a line in `metrics.jsonl`, and TensorBoard if it is there.

The file is the record, and an interrupted run must leave the same one as an uninterrupted run:
lines are only ever appended, each by a single write, and `MetricsWriter.resume` takes back those
that the restored checkpoint does not know.
"""

from __future__ import annotations

import json
import math
import operator
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

_FILE = "metrics.jsonl"
_RESERVED = ("step", "nonfinite")


class MetricsWriter:
    """Append scalars to `directory/metrics.jsonl`, and to TensorBoard where asked.

    A line reads `{"step": 120, "loss": 2.31, "converged": 0.97}`. JSON has no NaN and no infinity:
    such a value is written as null, and its name is listed under `"nonfinite"`. Each line is in
    the operating system's hands when `write` returns, so that a killed process loses none; `sync`
    forces them to the disk, which a loop does before it saves a checkpoint.

    Args:
        directory: where the file lives; made if it is missing. An existing file is continued.
        tensorboard: True writes event files to `directory/tensorboard` by tensorboardX, False does
            not, None does if tensorboardX is installed.

    Raises:
        ImportError: `tensorboard=True` and tensorboardX is not installed.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> directory = tempfile.mkdtemp()
        >>> with MetricsWriter(directory, tensorboard=False) as metrics:
        ...     metrics.write(1, loss=jnp.float32(2.5), converged=1.0)
        ...     metrics.write(2, loss=float("nan"))
        >>> read_metrics(directory)[1]
        {'step': 2, 'loss': None, 'nonfinite': ['loss']}
    """

    def __init__(self, directory: str | os.PathLike[str], tensorboard: bool | None = None):
        self.path = Path(directory) / _FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._board = _tensorboard(self.path.parent, tensorboard)
        # Unbuffered: one `write` is one system call, and a kill cannot hold a line back.
        self._file = self.path.open("ab", buffering=0)

    @classmethod
    def resume(
        cls, directory: str | os.PathLike[str], step: int, tensorboard: bool | None = None
    ) -> MetricsWriter:
        """Continue after a restart from the checkpoint of `step`.

        Lines of later steps go, and so does a last line that the interruption cut. The file is
        replaced in one move. Lines that stay keep their bytes. TensorBoard is told to hide the
        events of later steps.
        """
        step = operator.index(step)
        path = Path(directory) / _FILE
        if path.exists():
            _keep_until(path, step)
        # A name of its own: event files are named by the second, and the same name is overwritten.
        board = _tensorboard(
            path.parent, tensorboard, purge_step=step + 1, filename_suffix=f".from-{step}"
        )
        writer = cls(directory, tensorboard=False)
        writer._board = board
        return writer

    def write(self, step: int, **scalars: Any) -> None:
        """Append one line.

        Args:
            step: the step the values belong to.
            **scalars: Python, NumPy or JAX scalars (0-d arrays of any dtype), or None for a value
                that does not exist at this step.

        Raises:
            TypeError: a value is not a scalar.
            ValueError: a value is called "nonfinite", or the writer is closed.
        """
        step = operator.index(step)
        row: dict[str, Any] = {"step": step}
        nonfinite = []
        # One transfer for all of them, instead of one wait a value.
        for name, value in jax.device_get(scalars).items():
            if name in _RESERVED:
                raise ValueError(f"a metric cannot be called {name!r}: the file uses that name")
            row[name] = _plain(name, value)
            if isinstance(row[name], float) and not math.isfinite(row[name]):
                row[name] = None
                nonfinite.append(name)
        if nonfinite:
            row["nonfinite"] = nonfinite
        line = json.dumps(row, allow_nan=False) + "\n"
        self._file.write(line.encode())
        if self._board is not None:
            for name, value in row.items():
                if name not in _RESERVED and value is not None:
                    self._board.add_scalar(name, float(value), step)

    def sync(self) -> None:
        """Force every line to the disk, so that a power cut cannot take back what was written."""
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the file and the event file."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, oldest first. A last line that is not finished is left out.

    Args:
        path: the file, or the directory that holds `metrics.jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line inside the file is not a JSON object; the message gives its number.
    """
    path = Path(path)
    if path.is_dir():
        path = path / _FILE
    rows = []
    for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
        row = _row(line)
        if row is None:
            raise ValueError(f"line {number} of {path} is not a JSON object with a step")
        rows.append(row)
    return rows


def _plain(name: str, value: Any) -> Any:
    """The value as JSON knows it: a float, an int, a bool or None."""
    if isinstance(value, (np.ndarray, np.generic)):
        if value.shape != ():
            raise TypeError(f"metric {name!r} must be a scalar, and has shape {value.shape}")
        value = value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"metric {name!r} must be a number, and is {type(value).__name__}")


def _whole_lines(data: bytes) -> list[bytes]:
    # Not splitlines(): only the newline that `write` put there ends a line.
    return data.split(b"\n")[:-1]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)


def _keep_until(path: Path, step: int) -> None:
    data = path.read_bytes()
    kept = []
    for number, line in enumerate(_whole_lines(data), start=1):
        row = _row(line)
        if row is None:
            warnings.warn(
                f"dropped line {number} of {path}: it is not a JSON object with a step",
                RuntimeWarning,
                stacklevel=3,
            )
        elif row["step"] <= step:
            kept.append(line + b"\n")
    if b"".join(kept) == data:
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _tensorboard(directory: Path, wanted: bool | None, **options: Any) -> Any:
    if wanted is False:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        if wanted is None:
            return None
        raise ImportError(
            "TensorBoard files need tensorboardX: pip install 'deqjax[experiments]'",
            name="tensorboardX",
        ) from error
    return SummaryWriter(str(directory / "tensorboard"), **options)
