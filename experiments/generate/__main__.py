"""Text from a trained language model.

    python -m experiments.generate --run runs/python-docs --prompt "The function" --stream
    python -m experiments.generate --run runs/ptb --prompt "the" "in new york" --count 3 --top-p 0.9
    python -m experiments.generate --benchmark

Nothing but the run's folder is needed. What decoding keeps, and what it costs: docs/generate.md.
"""

from deqjax.training import command_line

from . import Config, main

if __name__ == "__main__":
    command_line(Config, main)
