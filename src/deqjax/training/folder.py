"""The folder of a run: whose it is, and what lies where in it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

from .options import OptionError

Config = TypeVar("Config")

# Where and on what a run computes is not part of what it is.
_NOT_RECORDED = ("runs", "name", "restart", "parallel", "mesh", "launch")


def claim(directory: Path, described: list[dict[str, Any]], restart: bool) -> None:
    """Make the folder the run of this config, or find that it already is.

    Args:
        described: `describe` of the config of every process, all of which must agree.

    Raises:
        OptionError: they do not, or the folder holds another run.
    """
    wanted = described[0]
    for k, other in enumerate(described):
        if key := _first_difference(wanted, other):
            raise OptionError(
                f"process {k} was started with other options than process 0 ({key} is "
                f"{other.get(key)!r} there and {wanted.get(key)!r} here): give all the same"
            )
    if restart and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:
            found = {}
        if key := _first_difference(wanted, found):
            raise OptionError(
                f"{directory} holds a run with other options ({key} was {found.get(key)!r}, now "
                f"{wanted.get(key)!r}): choose another --name, or --restart to delete that run"
            )
    write_json(path, wanted)


def describe(config: Any) -> dict[str, Any]:
    """Field names and values of nested dataclasses, as JSON has them."""

    def flat(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name in _NOT_RECORDED:
                continue
            found |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
        return found

    return json.loads(json.dumps(flat(config), default=str))


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


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    return next((k for k in sorted(one | other) if one.get(k) != other.get(k)), None)
