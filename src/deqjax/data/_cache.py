"""The cache of encoded corpora: one folder a key, safe to damage and to race for.

Every file of a folder is a function of its key, is written under another name and renamed into
place, and carries a checksum in `manifest.json`, which is written last. So whatever mixture of
writers a folder comes from, it is either whole or seen not to be, and then written again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .vocabulary import Vocabulary

SPLITS = ("train", "valid", "test")
Encoded = tuple[Vocabulary, dict[str, np.ndarray]]


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, else $DEQJAX_CACHE, else ~/.cache/deqjax; made if need be.

    Raises `OSError` naming the folder when it cannot be made or written to."""
    chosen = cache_dir or os.environ.get("DEQJAX_CACHE") or "~/.cache/deqjax"
    root = Path(chosen).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise OSError(
            f"the cache folder {root} cannot be written ({error.strerror}): set DEQJAX_CACHE or "
            "pass cache_dir"
        ) from error
    return root


def cached(folder: Path, encode: Callable[[], Encoded]) -> Encoded:
    """The vocabulary and memory-mapped int32 arrays in `folder`, made by `encode` if need be."""
    found = _read(folder)
    if found is None:
        _write(folder, *encode())
        found = _read(folder)
    if found is None:
        raise OSError(f"the cache folder {folder} does not give back what was written to it")
    return found


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> Encoded | None:
    """What `folder` holds, or None when anything is missing or differs from its checksum."""
    try:
        sums = json.loads((folder / "manifest.json").read_text(encoding="ascii"))
        names = ["vocabulary.json", *(f"{split}.npy" for split in SPLITS)]
        if any(file_sha256(folder / name) != sums[name] for name in names):
            return None
        arrays = {
            split: np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
            for split in SPLITS
        }
        return Vocabulary.load(folder / "vocabulary.json"), arrays
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, vocabulary: Vocabulary, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="writing-") as scratch:
        made = Path(scratch)
        vocabulary.save(made / "vocabulary.json")
        for split in SPLITS:
            np.save(made / f"{split}.npy", arrays[split].astype(np.int32), allow_pickle=False)
        sums = {path.name: file_sha256(path) for path in sorted(made.iterdir())}
        (made / "manifest.json").write_text(json.dumps(sums), encoding="ascii")
        for name in (*sums, "manifest.json"):
            os.replace(made / name, folder / name)
