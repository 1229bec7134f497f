"""Training: a pure step, a loop that survives being killed, and what a run leaves behind."""

from .checkpoints import Checkpoints as Checkpoints
from .curves import plot_curves as plot_curves
from .language_modelling import LanguageModelling as LanguageModelling
from .language_modelling import perplexity as perplexity
from .language_modelling import sample as sample
from .loop import Interrupted as Interrupted
from .loop import Run as Run
from .loop import fit as fit
from .loop import load_model as load_model
from .loop import read_config as read_config
from .metrics import MetricsWriter as MetricsWriter
from .metrics import read_metrics as read_metrics
from .options import OptionError as OptionError
from .options import SolverOptions as SolverOptions
from .options import TrainOptions as TrainOptions
from .options import checked as checked
from .options import command_line as command_line
from .progress import Progress as Progress
from .step import Task as Task
from .step import TrainState as TrainState
from .step import make_step as make_step
from .step import new_state as new_state
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights
