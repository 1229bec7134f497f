"""The manifest: what every file of a checkpoint must be, and whether it still is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import Damaged, reason

FORMAT = "deqjax-checkpoint-1"
NAME = "manifest.json"

Files = dict[str, dict[str, Any]]


def sealed(folder: Path, paths: Iterable[Path]) -> Files:
    """Force files to the disk, and say what each must be from now on."""
    files = {}
    for path in sorted(path for path in paths if path.is_file()):
        sync(path)
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        files[name] = {"bytes": size, "sha256": _hash(path)}
    return files


def write(folder: Path, content: dict[str, Any], files: Files) -> None:
    """Write the manifest and force it and the names of all files to the disk.

    Args:
        content: what else it says, as JSON.
        files: what `sealed` said of files that need not be read again.
    """
    everything = sorted(folder.rglob("*"))
    rest = (p for p in everything if p.relative_to(folder).as_posix() not in files)
    files = files | sealed(folder, rest)
    manifest = {"format": FORMAT, **content, "files": dict(sorted(files.items()))}
    manifest["sha256"] = _digest(manifest)
    (folder / NAME).write_text(json.dumps(manifest, indent=1))
    for path in (folder / NAME, folder, *filter(Path.is_dir, everything)):
        sync(path)


def read(folder: Path, *, sizes: bool = False) -> dict[str, Any]:
    """The manifest, which is whole.

    Args:
        sizes: whether to look at the sizes of the other files; none is read.

    Raises:
        Damaged: it is missing, altered, or of another format, or a file has another size.
    """
    try:
        manifest = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{NAME} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise Damaged(f"it cannot be read ({reason(error)})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise Damaged(f"{NAME} does not match its own SHA-256")
    if manifest["format"] != FORMAT:
        raise Damaged(f"its format is {manifest['format']!r}, this version reads {FORMAT!r}")
    if sizes:
        _compare(folder, manifest["files"], hashes=False)
    return manifest


def problem(folder: Path, *, share: tuple[int, int]) -> str | None:
    """What is wrong with a checkpoint, by its manifest and the SHA-256 of its files; or None.

    Args:
        share: (k, n), only the k-th of n parts of the files, of about the same size.
    """
    try:
        files = read(folder)["files"]
        names = sorted(files, key=lambda name: (files[name]["bytes"], name))[share[0] :: share[1]]
        _compare(folder, {name: files[name] for name in names}, hashes=True)
    except Damaged as why:
        return str(why)
    return None


def _compare(folder: Path, files: Files, *, hashes: bool) -> None:
    try:
        for name, file in files.items():
            if (size := (folder / name).stat().st_size) != file["bytes"]:
                raise Damaged(f"{name} has {size} bytes instead of {file['bytes']}")
            if hashes and _hash(folder / name) != file["sha256"]:
                raise Damaged(f"{name} does not match its SHA-256")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise Damaged(f"it cannot be read ({reason(error)})") from error


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
