"""The folder of a run: whose it is, and what lies where in it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .checkpoints.errors import reason
from .identity import DATA, difference
from .identity import describe as describe
from .lock import LOCK
from .options import OptionError

Config = TypeVar("Config")
Files = Mapping[str, Callable[[Path], object]]
CONFIG = "config.json"


def agreed(described: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes of a job say of their run.

    Raises:
        OptionError: they do not say the same.
    """
    wanted = described[0]
    for k, other in enumerate(described):
        for key in sorted(wanted | other):
            if wanted.get(key) != other.get(key):
                raise OptionError(
                    f"process {k} was started with other options than process 0 ({key} is "
                    f"{other.get(key)!r} there and {wanted.get(key)!r} here): give all the same"
                )
    return wanted


def recorded(directory: Path) -> dict[str, Any] | None:
    """What the folder says of its run; None if there is none.

    Raises:
        OptionError: the file that says it is damaged.
    """
    path = directory / CONFIG
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as wrong:
        raise OptionError(
            f"{path} cannot be read ({reason(wrong)}): choose another --name"
        ) from None
    return found


def check_same(directory: Path, config: Any, described: dict[str, Any], files: Files) -> None:
    """Whether the folder is free or holds the run of this config. Nothing is written.

    Args:
        described: the config, and the fingerprint of the data where there is one.
        files: what else the folder has held from the beginning.

    Raises:
        OptionError: it holds another run.
    """
    if (found := recorded(directory)) is None:
        return
    otherwise = "choose another --name, or --restart to delete that run"
    if said := difference(config, found):
        raise OptionError(f"{directory} holds a run with other options ({said}): {otherwise}")
    was, now = found.get(DATA), described.get(DATA)
    if was is not None and was != now:
        raise OptionError(
            f"{directory} holds a run on other data (their fingerprint was {was[:12]}, now "
            f"{str(now)[:12]}): bring the same data, or {otherwise}"
        )
    if was is not None:
        return
    # Nobody wrote down what its data were; these files say something of them.
    for name, write in files.items():
        if (directory / name).exists() and not _writes(write, directory / name):
            raise OptionError(
                f"{directory} holds a run with another {name} than these data give: bring the same "
                f"data, or {otherwise}"
            )


def claim(directory: Path, described: dict[str, Any], files: Files) -> None:
    """Record what the run is, in a folder that is locked and free or its own."""
    for name, write in files.items():
        if not (directory / name).exists():
            write(directory / name)
    write_json(directory / CONFIG, described)


def clear(directory: Path) -> None:
    """Delete a run, but not the lock on its folder.

    Raises:
        OptionError: what is in the folder is no run.
    """
    if not (directory / CONFIG).exists() and {p.name for p in directory.iterdir()} - {LOCK}:
        raise OptionError(
            f"{directory} is not the folder of a run (it has no {CONFIG}), and --restart would "
            "delete what is in it: choose another --name"
        )
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def read_config(kind: type[Config], directory: Path) -> Config:
    """The config of the run in `directory`, as the (nested) dataclass it was written from."""
    found = json.loads((directory / "config.json").read_text())

    def build(kind: Any, default: Any) -> Any:
        values = {}
        for field in dataclasses.fields(kind):
            value = getattr(default, field.name)
            if dataclasses.is_dataclass(value):
                values[field.name] = build(type(value), value)
            elif field.name in found:
                values[field.name] = found[field.name]
        return kind(**values)

    return build(kind, kind())


def snapshot(directory: Path, step: int) -> Path:
    """Where a run in `directory` keeps its weights of that step."""
    return directory / "snapshots" / f"{step:08d}.npz"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(partial, path)


def _writes(write: Callable[[Path], object], path: Path) -> bool:
    """Whether that is what stands in the file."""
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / path.name
        write(again)
        return again.read_bytes() == path.read_bytes()
