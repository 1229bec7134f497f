"""What has been measured, by device, part and unit, in a file that is replaced whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deqjax.training.folder import write_json

FILE = "gpu.json"
Rows = dict[str, dict[str, Any]]


class Ledger:
    """Rows in memory and, after every `put`, in `gpu.json` of each of those folders.

    A row is what a unit answered: plain data. One with `failed` says why there is none, and one
    with `unfinished` goes on in the next call; both are tried again.
    """

    def __init__(self, *folders: Path):
        self.folders = folders
        self.devices: dict[str, dict[str, Rows]] = {}
        for folder in reversed(folders):  # the first one has the last word
            file = folder / FILE
            if file.exists():
                for device, parts in json.loads(file.read_text("utf-8")).items():
                    for part, rows in parts.items():
                        self.rows(device, part).update(rows)

    def rows(self, device: str, part: str) -> Rows:
        return self.devices.setdefault(device, {}).setdefault(part, {})

    def done(self, device: str, part: str, unit: str) -> bool:
        row = self.rows(device, part).get(unit, {"failed": "not tried"})
        return not (row.get("failed") or row.get("unfinished"))

    def put(self, device: str, part: str, unit: str, row: dict[str, Any]) -> None:
        """Keep a row; one that failed does not replace one that did not."""
        if row.get("failed") and self.done(device, part, unit):
            return
        self.rows(device, part)[unit] = row
        kept = {d: {p: rows for p, rows in parts.items() if rows} for d, parts in self.known()}
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FILE, kept)

    def known(self) -> list[tuple[str, dict[str, Rows]]]:
        """(device, its parts), of those that something was measured on."""
        return [(d, parts) for d, parts in self.devices.items() if any(parts.values())]
