"""Is a converged and stable answer a right one? Prefix parity, far beyond the length of training.

    python -m experiments.prefix_sums                      # five seeds, then the table
    python -m experiments.prefix_sums --seeds 0 --steps 400 --test-lengths 32 64

A network of 6,337 numbers learns the parity of every prefix of 32 bits, by an equilibrium of steps
that each reach two bits far; then it is given strings of up to 512 bits, from random starts, with
several solvers. Runs that are there already are not trained again, nor asked again; one that was
killed goes on. Writes `experiments/results/prefix_sums.md` after each of them.
"""

from __future__ import annotations

import dataclasses

from deqjax.training import checked, command_line, fit

from . import Config, PrefixSums
from .proof import prove
from .report import asked, record


def main(config: Config) -> None:
    checked(config, config.train)
    for seed in config.seeds:
        for stacked in (False, True):
            one = config.of(seed, stacked)
            if asked(one):
                continue
            named = dataclasses.replace(one, seeds=(), test_lengths=(), strings=0)
            run = fit(PrefixSums(one), one.train, named, name=one.run_name)
            record(one, prove(run.model, one))


if __name__ == "__main__":
    command_line(Config, main)
