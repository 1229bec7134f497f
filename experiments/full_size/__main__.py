"""The paper's full-size models: how many parameters they have, and what training them takes.

    python -m experiments.full_size                                       # on this machine's CPU
    python -m experiments.full_size --target v5e                          # for a TPU; needs libtpu
    python -m experiments.full_size --only wt103-transformer-small

Models are compiled and never run, so that no memory is needed for them. Writes the tables into
`experiments/results/full_size.md`; what this run does not measure stays in them.
"""

from deqjax.training import command_line

from .memory import Config, main

if __name__ == "__main__":
    command_line(Config, main)
