"""Sibling implicit layers: outputs that are the solution of a problem, under the contract of
`fixed_point`: a `Solution`, a `Status` and statistics per sample."""

from .maxsat import maxsat as maxsat
from .ode import ode as ode
from .qp import QPSolution as QPSolution
from .qp import QPStats as QPStats
from .qp import qp as qp
