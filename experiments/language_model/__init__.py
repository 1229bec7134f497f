"""Language models (Bai et al. 2019, Tables 2 and 3): see `__main__`."""

from .config import Config as Config
from .models import build as build
from .recipes import recipe as recipe
from .task import prepare as prepare
from .train import main as main
