"""Sudoku, learned from solved boards by an implicit layer: see `__main__`."""

from .recipes import recipe as recipe
from .task import Config as Config
from .task import prepare as prepare
from .train import main as main
