"""All that was measured as one page of tables, drawn from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import penn, plan, solvers, step
from .ledger import Ledger

MODULES: dict[str, Any] = {"step": step, "solvers": solvers, "penn": penn, "plan": plan}


def write(ledger: Ledger, folder: Path) -> None:
    """`gpu.md` and the pictures in `folder`."""
    text = [
        "# The paper's sizes on a GPU",
        "Measured by `python -m experiments.gpu`; docs/gpu.md says how to read it.",
    ]
    for device, parts in ledger.known():
        text.append(f"## {device}")
        for name, module in MODULES.items():
            rows = parts.get(name, {})
            found = {unit: row for unit, row in rows.items() if not row.get("failed")}
            if found:
                text += [f"### {module.TITLE}", *module.report(found)]
            failed = [f"- {u}: {row['failed']}" for u, row in rows.items() if row.get("failed")]
            if failed:
                text.append(f"Not measured ({name}):\n\n" + "\n".join(failed))
        for name, module in MODULES.items():
            picture = getattr(module, "picture", None)
            rows = {u: r for u, r in parts.get(name, {}).items() if not r.get("failed")}
            if picture is not None and rows:
                picture(rows, folder, device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text("\n\n".join(text) + "\n", "utf-8")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
