"""Run a command with the Python of .venv, made or remade first where it no longer fits.

    python tools/venv.py UV EXTRAS WORD...    # in the project's folder; the Makefile does

UV is a uv to install with, or empty for pip; EXTRAS are those of pyproject.toml, with commas; the
words are the arguments of .venv's Python. Needs nothing but Python 3.11. An install that is cut off
is noticed and begun again; two at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

STAMP = ".installed-"  # + extras: a finished install; it holds the digest of what it was made from


@dataclass(frozen=True)
class Venv:
    """The virtual environment of the project in `folder`."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / ".venv"

    @property
    def python(self) -> str:
        return str(self.path / "bin" / "python")

    @property
    def owner(self) -> Path:
        """Which interpreter and folder it was made for."""
        return self.path / ".made-for"

    @property
    def installing(self) -> Path:
        """There during an install, and after one that was cut off."""
        return self.path / ".installing"

    def made_for(self) -> str:
        return json.dumps([sys.version, sys.base_prefix, str(self.folder)])

    def digest(self, extras: str) -> str:
        """Of all that an install with those extras depends on."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))
        asked = json.dumps([project["project"], project["build-system"], project["tool"]["hatch"]])
        pins = (self.folder / "constraints.txt").read_text("utf-8")
        return hashlib.sha256((self.made_for() + extras + asked + pins).encode()).hexdigest()

    def sound(self) -> bool:
        """Whether it is this interpreter's, and no install was cut off."""
        mine = _text(self.owner) == self.made_for()
        return mine and os.access(self.python, os.X_OK) and not self.installing.exists()

    def ready(self, extras: str) -> bool:
        """It is sound, and one finished install held these extras, perhaps among others."""
        done = {p.name.removeprefix(STAMP): _text(p) for p in self.path.glob(STAMP + "*")}
        return self.sound() and any(
            set(extras.split(",")) <= set(had.split(",")) and found == self.digest(had)
            for had, found in done.items()
        )

    def make(self, uv: str) -> bool:
        """Make it anew, with uv or, where that is empty, with this Python's own means."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.is_symlink() or self.path.exists():
            sys.exit(".venv cannot be removed; remove it by hand, then run make again.")
        path = str(self.path)
        if uv:
            made = _run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, path)
        elif find_spec("venv") and find_spec("ensurepip"):
            made = _run(sys.executable, "-m", "venv", path)
        elif find_spec("venv") and find_spec("pip"):
            # Debian without python3-venv: its pip can fill a virtual environment that has none.
            pip = (sys.executable, "-m", "pip", "--python", self.python)
            made = _run(sys.executable, "-m", "venv", "--without-pip", path)
            made = made and _run(*pip, "install", "--quiet", "pip")
        else:
            sys.exit(
                f"{sys.executable} cannot make virtual environments: install its venv module "
                "(Debian, Ubuntu: apt install python3-venv) or uv, then run make again."
            )
        if made:
            self.installing.touch()
            self.owner.write_text(self.made_for(), "utf-8")
        return made

    def install(self, extras: str, uv: str) -> bool:
        """Install the project with those extras, at the pinned versions."""
        if not self.sound() and not self.make(uv):
            return False
        self.installing.touch()
        how = "uv" if uv else "pip"
        print(f"installing deqjax[{extras}] into .venv with {how}", file=sys.stderr, flush=True)
        start = [self.python, "-m", "pip", "--disable-pip-version-check", "install"]
        if uv:
            start = [uv, "pip", "install", "--python", self.python]
        if not _run(*start, "--quiet", "-c", "constraints.txt", "-e", f".[{extras}]"):
            return False
        (self.path / (STAMP + extras)).write_text(self.digest(extras), "utf-8")
        self.installing.unlink()
        return True


class Lock:
    """A lock that the kernel drops when its holder ends, however it ends."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.set_inheritable(self._file, True)  # a command keeps it: nobody remakes .venv under it

    def take(self, kind: int) -> None:
        try:
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another make that uses .venv", file=sys.stderr, flush=True)
                fcntl.flock(self._file, kind)
        except OSError:
            pass  # a file system without locks: nothing to wait for


def main(uv: str, extras: str, command: list[str]) -> None:
    venv = Venv(Path.cwd())
    lock = Lock(venv.folder / ".venv.lock")
    lock.take(fcntl.LOCK_SH)
    while not venv.ready(extras):
        lock.take(fcntl.LOCK_UN)
        lock.take(fcntl.LOCK_EX)
        # uv and pip can be set up for different indexes: what one cannot reach, the other may.
        installers = ([uv] if _starts(uv) else []) + [""]
        if not venv.ready(extras) and not any(venv.install(extras, one) for one in installers):
            sys.exit("the install failed (see above); the next make starts .venv afresh.")
        lock.take(fcntl.LOCK_SH)
    print(shlex.join([venv.python, *command]), flush=True)
    os.execv(venv.python, [venv.python, *command])


def _starts(uv: str) -> bool:
    try:
        return bool(uv) and not subprocess.run([uv, "--version"], capture_output=True).returncode
    except OSError:
        return False


def _run(*words: str) -> bool:
    return subprocess.run(words, stdin=subprocess.DEVNULL).returncode == 0


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
