"""What is said of an option that cannot be right."""

from __future__ import annotations

from typing import Any


class OptionError(ValueError):
    """An option that cannot be right. `command_line` prints it as one sentence."""


def checked(*options: Any) -> None:
    """Run every `check`, with whatever is wrong as an `OptionError`."""
    for option in options:
        try:
            option.check()
        except (TypeError, ValueError) as wrong:
            raise OptionError(str(wrong)) from None


def flag(name: str) -> str:
    """A field's name as the command line has it."""
    return "--" + name.replace("_", "-")
