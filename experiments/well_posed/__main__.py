"""Well-posedness and universality, measured: what the certificates say against exact enumeration,
how near the projection is, what a splitting costs, what a certified layer learns, and a deep
network as one equilibrium.

    python -m experiments.well_posed [--parts certificates digits] [--seeds 5]

Some minutes on two cores, most of them for the digits. Writes the tables into
`experiments/results/well_posed.md` and draws `well_posed.png` beside it.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from deqjax.training import OptionError, command_line

from . import certificates, depth, digits, report, splitting


@dataclass(frozen=True)
class Config:
    """Certificates, projection, splittings, digits and universality."""

    parts: tuple[str, ...] = ()
    """certificates, projection, splittings, digits, universality; all if not given"""
    matrices: int = 10_000
    """random matrices that every certificate is checked on"""
    seeds: int = 5
    """how often each model is trained on digits"""
    epochs: int = 20
    """times through the training digits"""
    width: int = 64
    """of the layers on digits"""
    out: Path = Path("experiments/results/well_posed.md")
    """the tables; parts that this run does not measure stay in it"""


def main(config: Config) -> None:
    for name in ("matrices", "seeds", "epochs", "width"):
        if getattr(config, name) < 1:
            raise OptionError(f"--{name} must be at least 1; got {getattr(config, name)}")
    with_x64: dict[str, Callable[[], Any]] = {
        "certificates": lambda: certificates.checked(config.matrices),
        "projection": certificates.projected,
        "splittings": splitting.counted,
        "universality": depth.exactness,
    }
    known = {**with_x64, "digits": None}
    unknown = [part for part in config.parts if part not in known]
    if unknown:
        raise OptionError(f"no part is called {unknown[0]!r}; there are {', '.join(known)}")
    said = f"`{_command()}`, {datetime.date.today().isoformat()}, jax {jax.__version__}"
    for part in config.parts or known:
        if part == "digits":
            found: Any = digits.compared(config.seeds, config.epochs, config.width)
        else:
            with jax.enable_x64(True):
                found = with_x64[part]()
        kept = report.record(config.out, part, said, found)
        print(f"{part}: done", flush=True)
        report.draw(kept, config.out.with_suffix(".png"))
    print(f"written: {config.out}")


def _command() -> str:
    given = [a for a, b in zip(sys.argv[1:], sys.argv, strict=False) if "--out" not in (a, b)]
    return " ".join(["python -m experiments.well_posed", *given])


if __name__ == "__main__":
    command_line(Config, main)
