"""Text from a trained language model, and how fast it comes."""

from __future__ import annotations

from typing import Any

from . import benchmark, text
from .config import Config as Config


def main(config: Config) -> Any:
    config.check()
    return benchmark.main(config) if config.benchmark else text.main(config)
