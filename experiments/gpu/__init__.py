"""What only an accelerator can show, as one command: `python -m experiments.gpu --minutes 30`.

A part is a module with `TITLE`, `units(config)`, the names of what it measures, the most important
first; `run(unit, config)`, which measures one of them in a process of its own; and `report(rows)`,
its text. What a unit found goes into the ledger at once, so that a run that ends, by its clock or
by a kill, goes on where it stopped.
"""

from .config import Config as Config
