"""Copy memory (Bai et al. 2019, Table 1): see `__main__`."""

from .recipes import recipe as recipe
from .task import Config as Config
from .task import prepare as prepare
from .train import main as main
