"""deqjax: implicit differentiation and deep equilibrium models in JAX."""

from . import diagnostics as diagnostics
from . import regularization as regularization
from ._failure import SolveWarning as SolveWarning
from ._failure import checking_solves as checking_solves
from ._fixed_point import adjoint_probe as adjoint_probe
from ._fixed_point import fixed_point as fixed_point
from ._fixed_point import implicit_function as implicit_function
from ._fixed_point import root_find as root_find
from ._from_loop import from_loop as from_loop
from ._solution import Solution as Solution
from ._solution import SolveError as SolveError
from ._solution import Stats as Stats
from ._solution import Status as Status
from .adjoints import JFB as JFB
from .adjoints import Adjoint as Adjoint
from .adjoints import Implicit as Implicit
from .adjoints import Phantom as Phantom
from .adjoints import Reversible as Reversible
from .adjoints import Shine as Shine
from .adjoints import Tail as Tail
from .adjoints import Unrolled as Unrolled
from .solvers import GMRES as GMRES
from .solvers import Anderson as Anderson
from .solvers import Broyden as Broyden
from .solvers import Compacted as Compacted
from .solvers import NewtonKrylov as NewtonKrylov
from .solvers import Picard as Picard
from .solvers import Solver as Solver
from .solvers import WarmStart as WarmStart

__version__ = "0.1.0"
