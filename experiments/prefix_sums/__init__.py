"""Prefix parity by a network that settles: `task` trains it, `proof` asks what status is worth."""

from .task import Config as Config
from .task import PrefixSums as PrefixSums
from .task import network as network
