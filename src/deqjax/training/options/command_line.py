"""Nested dataclasses as flags, and a program that ends with one sentence where it cannot go on."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from ..checkpoints import CheckpointError
from ..host_memory import keep_freed_memory
from .errors import OptionError

Config = TypeVar("Config")


def command_line(
    config: type[Config],
    main: Callable[[Config], object],
    args: list[str] | None = None,
    defaults: Callable[[list[str]], Config] | None = None,
) -> None:
    """Read `config` from the command line and run `main` on it.

    Every field of the (nested) dataclasses is a flag; those of a nested one, or of a base class,
    are a group of the help, which begins with the text of the program's module. `defaults` may look
    at the arguments and say what holds where no flag does: a preset. An option that cannot be
    right, or a file that is missing, ends the program with one sentence and exit code 2; so does a
    run that cannot go on. The process keeps the memory that it frees (`keep_freed_memory`).
    """
    try:
        import tyro
    except ImportError:
        sys.exit("the experiments need the extra packages: pip install 'deqjax[experiments]'")
    args = sys.argv[1:] if args is None else args
    grouped = _grouped(config)
    default = {} if defaults is None else {"default": _in_groups(grouped, defaults(args))}
    omit: Any = tyro.conf.OmitArgPrefixes[grouped]
    options = _flat(config, tyro.cli(omit, args=args, **_about(config), **default))
    keep_freed_memory()
    try:
        main(options)
    except (OptionError, FileNotFoundError, CheckpointError, FloatingPointError) as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)


def _about(config: type) -> dict[str, Any]:
    """The program as it was called, and what its module says of it, with its examples."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    root = lambda name: name.partition(".")[0]
    if spec is None or root(config.__module__) not in ("__main__", root(spec.name)):
        return {}
    name = spec.name.removesuffix(".__main__")
    # Commands stand on lines of their own, for the parser by what they begin with.
    said = (program.__doc__ or config.__doc__ or "").replace("\n    python ", "\n$ python ")
    return dict(prog=f"python -m {name}", description=said)


# A dataclass may have its fields from several base classes, each a group of them. For the parser,
# which knows nested dataclasses as groups and breaks help texts where their source does, it is
# rewritten: a base becomes a field, and every text is one line.


def _bases(kind: Any) -> dict[str, Any]:
    """{name of a group: the base class that has its fields}."""
    name = lambda base: base.__name__.removesuffix("Options").lower()
    return {name(base): base for base in kind.__bases__ if dataclasses.is_dataclass(base)}


def _own(kind: Any) -> list[dataclasses.Field]:
    """The fields that are in no group."""
    inherited = {f.name for base in _bases(kind).values() for f in dataclasses.fields(base)}
    return [f for f in dataclasses.fields(kind) if f.name not in inherited]


def _grouped(kind: Any) -> Any:
    """The dataclass as the parser is to see it."""
    from typing_extensions import Doc

    types, says = get_type_hints(kind), _help(kind)
    fields: list[Any] = []
    for name, base in _bases(kind).items():
        group = _grouped(base)
        fields.append((name, group, dataclasses.field(default_factory=group)))
    for f in _own(kind):
        its, given = types[f.name], dict(default=f.default, default_factory=f.default_factory)
        if dataclasses.is_dataclass(its):
            its = _grouped(its)
            make: Any = f.default_factory
            given = dict(default_factory=lambda its=its, make=make: _in_groups(its, make()))
        elif f.name in says:
            its = Annotated[its, Doc(says[f.name])]
        fields.append((f.name, its, dataclasses.field(**given)))  # type: ignore[call-overload]
    made = dataclasses.make_dataclass(kind.__name__, fields, frozen=True)
    made.__doc__ = kind.__doc__
    return made


def _help(kind: Any) -> dict[str, str]:
    """The text under each field, or in its metadata, in one line."""
    from docstring_parser import parse_from_object

    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, TypeError):  # of a class that was typed in there is no source
        found |= {p.arg_name: p.description for p in parse_from_object(kind).params}
    found |= {f.name: f.metadata["help"] for f in _own(kind) if "help" in f.metadata}
    return {name: " ".join(text.split()) for name, text in found.items() if text}


def _in_groups(grouped: Any, config: Any) -> Any:
    """A config as an instance of what `_grouped` made of its kind."""
    if not dataclasses.is_dataclass(grouped):
        return config
    bases, values = _bases(type(config)), {}
    for f in dataclasses.fields(grouped):
        group = bases.get(f.name)
        if group is None:
            values[f.name] = _in_groups(f.type, getattr(config, f.name))
        else:
            own = {of.name: getattr(config, of.name) for of in dataclasses.fields(group)}
            values[f.name] = _in_groups(f.type, group(**own))
    make: Any = grouped
    return make(**values)


def _flat(kind: Any, found: Any) -> Any:
    """The config that an instance of `_grouped(kind)` stands for."""
    if not dataclasses.is_dataclass(kind):
        return found
    make: Any = kind
    types = get_type_hints(kind)
    values = {f.name: _flat(types[f.name], getattr(found, f.name)) for f in _own(make)}
    for name, base in _bases(make).items():
        values |= vars(_flat(base, getattr(found, name)))
    return make(**values)
