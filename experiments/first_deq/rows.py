"""The rows of the table: a solver, and what is done against gradients that are too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flax import nnx

from deqjax import Implicit

from .models import MLP, Classifier

SOLVERS = ("picard", "anderson", "broyden")
RTOL = 1e-4
STACKED = 12


@dataclass(frozen=True)
class Remedy:
    """One change to a row that has none.

    Attributes:
        says: what it is, for the table.
        clip: the largest norm of a batch's gradient.
        penalty: weight of ‖J‖²/n in the loss.
        max_gain: as in `Implicit`.
        unconverged: as in `Implicit`.
        finished_only: as in `Classifier`.
        contractive: as in `Cell`.
    """

    says: str
    clip: float | None = None
    penalty: float = 0.0
    max_gain: float | None = None
    unconverged: str = "exact"
    finished_only: bool = False
    contractive: bool = False


REMEDIES = {
    "": Remedy("as it is"),
    "clip": Remedy("batch gradient clipped to 1", clip=1.0),
    "penalty": Remedy("Jacobian penalty, weight 1", penalty=1.0),
    "finished": Remedy("no gradient through unfinished solves", finished_only=True),
    "gain": Remedy("a sample's gain limited to 10", max_gain=10.0),
    "safeguarded": Remedy(
        "gain limited to 10, u = v where unfinished", max_gain=10.0, unconverged="jfb"
    ),
    "contractive": Remedy("W kept at ‖W‖₂ ≤ 0.95", contractive=True),
}


@dataclass(frozen=True)
class Row:
    """A model and how it is trained. `solver` is None where nothing is solved."""

    name: str
    solver: str | None
    remedy: Remedy
    says: str

    def build(self, d: int, rngs: nnx.Rngs) -> Any:
        """The model, of width d."""
        if self.name == "mlp":
            return MLP(d, rngs=rngs)
        if self.solver is None:
            return Classifier(d, depth=STACKED, rngs=rngs)
        if self.name == "default":
            return Classifier(d, rngs=rngs)
        remedy = self.remedy
        return Classifier(
            d,
            solver=self.solver,
            # Named also where it is exact, which the default of `DEQ` is not.
            adjoint=Implicit(max_gain=remedy.max_gain, unconverged=remedy.unconverged),
            rtol=RTOL,
            contractive=remedy.contractive,
            finished_only=remedy.finished_only,
            rngs=rngs,
        )


def _rows():
    yield Row("mlp", None, REMEDIES[""], "an MLP with two hidden layers")
    yield Row("stack", None, REMEDIES[""], f"the cell stacked {STACKED} times")
    yield Row("default", "anderson", REMEDIES["safeguarded"], "`DEQ(cell)`, rtol 1e-5")
    for solver in SOLVERS:
        for name, remedy in REMEDIES.items():
            yield Row(f"{solver}-{name}" if name else solver, solver, remedy, remedy.says)


ROWS = {row.name: row for row in _rows()}
