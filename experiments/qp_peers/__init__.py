"""`implicit.qp` beside the quadratic programs of jaxopt and qpax."""

import os

# Before LAPACK is loaded: its threads spin while they wait for each other, and process time counts
# that, most against the peers, whose matrices are larger.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
