"""The paper's full-size models: what they are, what they take, and whether they fit a pod.

`configs` has the models, `memory` the tables of parameters and training memory, `plan` the training
step on chips that are not there.
"""

from .configs import CONFIGS as CONFIGS
from .configs import FullSize as FullSize
from .configs import build as build
from .configs import named as named
