"""Options that every experiment shares. The comment under a field is its help text.

A group of options is a dataclass, nested in a config or a base class of it.
"""

from .command_line import command_line as command_line
from .errors import OptionError as OptionError
from .errors import checked as checked
from .launch import LaunchOptions as LaunchOptions
from .penalties import PenaltyOptions as PenaltyOptions
from .phase import Phase as Phase
from .solver import SolverOptions as SolverOptions
from .train import TrainOptions as TrainOptions
