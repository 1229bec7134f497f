"""What deqjax costs, beside its peers in one run: `python -m experiments.benchmarks`."""

from .report import PRODUCTS as PRODUCTS
from .report import Settings as Settings
from .report import versions as versions
from .run import measure as measure
