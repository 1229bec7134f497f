"""What makes a run that run, and what a restart may change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

DATA = "data_fingerprint"

# Where and on what a run computes is not recorded at all.
_NOT_RECORDED = ("runs", "name", "restart", "parallel", "mesh", "launch")
_KEY = "deqjax"
# Metadata of a config's fields that are recorded and no part of a run's identity.
FREE = {_KEY: "free"}  # how often things are written, say
PLACE_OF_DATA = {_KEY: "place of data"}  # what they are is for `Task.fingerprint` to say


def describe(config: Any) -> dict[str, Any]:
    """Field names and values of nested dataclasses, as JSON has them."""
    return _plain({field.name: value for field, value in _fields(config)})


def difference(config: Any, recorded: dict[str, Any]) -> str | None:
    """The first way in which this config is of another run than the recorded one, in words.

    A field that was not recorded is of a later version than the record: it then had its default.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     width: int = 8
        ...     log_every: int = dataclasses.field(default=5, metadata=FREE)
        >>> difference(Config(log_every=1), describe(Config()))
        >>> difference(Config(width=4), describe(Config()))
        'width was 8, now 4'
    """
    fields = {field.name: (field, value) for field, value in _fields(config)}
    wanted = describe(config)
    for name in sorted(fields.keys() | recorded.keys() - {DATA}):
        if name not in fields:
            return f"{name} was {recorded[name]!r}, and there is no such option now"
        kind = fields[name][0].metadata.get(_KEY)
        if kind == "free" or (kind == "place of data" and DATA in recorded):
            continue
        was = recorded[name] if name in recorded else _default(fields[name][0])
        if was != wanted[name]:
            return f"{name} was {was!r}, now {wanted[name]!r}"
    return None


def fingerprint(*data: Any) -> str:
    """sha256, in hexadecimal, of arrays and numbers in any pytree: of their names in it, shapes,
    dtypes and bytes. What `Task.fingerprint` is made of.

    Examples:
        >>> fingerprint({"x": np.arange(3)}) == fingerprint({"x": np.array([0, 1, 2])})
        True
        >>> fingerprint(np.zeros(2)) == fingerprint(np.zeros(3))
        False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        array = np.asarray(leaf)
        where = jax.tree_util.keystr(path)
        digest.update(f"{where} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _fields(config: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _NOT_RECORDED:
            continue
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield field, value


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return None


def _plain(value: Any) -> Any:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))
