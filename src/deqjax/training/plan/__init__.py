"""Will it fit, will it scale: a train step compiled for chips that are not there.

python -m deqjax.training.plan --config wt103-transformer-medium --topology v5e:16x16
python -m deqjax.training.plan mine.tasks:numbers --topology h100:8
"""

from ._plan import Plan as Plan
from ._plan import largest as largest
from ._plan import plan as plan
from ._plan import plan_config as plan_config
from ._plan import plan_task as plan_task
from .chips import CHIPS as CHIPS
from .chips import Chip as Chip
from .cost import Collective as Collective
from .cost import Cost as Cost
from .cost import Costs as Costs
from .memory import Memory as Memory
from .roofline import Roofline as Roofline
from .search import Largest as Largest
