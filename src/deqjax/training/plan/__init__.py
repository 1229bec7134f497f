"""Will it fit, will it scale: a train step compiled for chips that are not there.

python -m deqjax.training.plan mine.tasks:numbers --topology h100:8
"""

from ._plan import Plan as Plan
from ._plan import largest as largest
from ._plan import plan as plan
from .asked import Asked as Asked
from .asked import show as show
from .chips import CHIPS as CHIPS
from .chips import Chip as Chip
from .cost import Collective as Collective
from .cost import Cost as Cost
from .cost import Costs as Costs
from .memory import Memory as Memory
from .roofline import Roofline as Roofline
from .search import Largest as Largest
