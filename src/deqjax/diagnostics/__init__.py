"""Does it converge, how fast, and is the gradient right? Questions asked of a cell in a notebook.

Everything that runs here solves or differentiates f itself: the cost is in each docstring.
"""

from ._drawing import style as style
from .basins_of_attraction import Basins as Basins
from .basins_of_attraction import basins as basins
from .basins_plot import plot_basins as plot_basins
from .comparison import SolverComparison as SolverComparison
from .comparison import SolverRow as SolverRow
from .comparison import compare_solvers as compare_solvers
from .convergence import plot_convergence as plot_convergence
from .eigenvalue_plot import plot_spectrum as plot_spectrum
from .eigenvalues import Spectrum as Spectrum
from .eigenvalues import spectrum as spectrum
from .gradient_plot import plot_gradients as plot_gradients
from .gradients import GradientAudit as GradientAudit
from .gradients import GradientRow as GradientRow
from .gradients import gradient_audit as gradient_audit
from .landscape_plot import plot_landscape as plot_landscape
from .lipschitz_constant import Lipschitz as Lipschitz
from .lipschitz_constant import lipschitz as lipschitz
from .paths import PathIndependence as PathIndependence
from .paths import path_independence as path_independence
from .radius import SpectralRadius as SpectralRadius
from .radius import spectral_radius as spectral_radius
from .residual_landscape import Landscape as Landscape
from .residual_landscape import landscape as landscape
from .spectra_plot import plot_spectra as plot_spectra
