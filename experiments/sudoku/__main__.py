"""Sudoku from solved boards alone: no rule of the game is told to the layer.

    python -m experiments.sudoku --layer optnet --size 4 --data-dir path/to/sudoku-4x4
    python -m experiments.sudoku --layer satnet --size 9 --data-dir path/to/sudoku-9x9
    python -m experiments.sudoku --layer optnet --size 9 --start spectral --data-dir …

A run that was killed goes on where its last checkpoint is, with the same command. What the numbers
mean: docs/sudoku.md.
"""

from deqjax.training import command_line

from . import Config, main, recipe

if __name__ == "__main__":
    command_line(Config, main, defaults=recipe)
