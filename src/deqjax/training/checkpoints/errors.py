"""What goes wrong with checkpoints."""

from __future__ import annotations

import os
import re


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those on disk can be read."""


class CheckpointMismatch(CheckpointError):
    """A sound checkpoint holds another tree than the template asks for."""


class Damaged(Exception):
    """What is wrong with one checkpoint folder, in words."""


def reason(error: BaseException) -> str:
    """One line that says what happened."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if code := re.search(r"os_error_code='(\d+)'", text):  # how TensorStore reports one
        return os.strerror(int(code[1]))
    return text.splitlines()[0] if text else type(error).__name__
