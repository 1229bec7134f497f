"""Copy memory (Bai et al. 2019, Table 1): see `__main__`."""

from .__main__ import main as main
from .recipes import recipe as recipe
from .task import Config as Config
from .task import prepare as prepare
