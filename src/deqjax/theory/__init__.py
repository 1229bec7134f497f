"""When an equilibrium exists and is unique, and why one layer is enough."""

from . import monotone as monotone
from . import universality as universality
from . import wellposed as wellposed
