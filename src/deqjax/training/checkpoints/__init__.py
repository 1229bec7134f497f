"""Checkpoints on disk that are complete or absent, and say so themselves.

One checkpoint is one folder::

    step_000000120/
      arrays/          the arrays, written by Orbax, one entry a leaf, named by its number
      manifest.json    the leaves' paths, shapes and dtypes, your `info`, the metric, the size and
                       SHA-256 of every other file, and the SHA-256 of the manifest itself

It is written under a name that no reader looks at, forced to the disk, and renamed. At the rename
it comes to exist, so a kill or a full disk leaves all of it or nothing. Disks also lose what was
complete, so `Checkpoints.restore` hashes every file before it believes one. Nothing is pickled.

`store` is the class, `shelf` knows the folders, `manifest` whether one is sound, `leaves` what is
in it.
`arrays` is the only module that imports Orbax, when a `Checkpoints` is made. `background` is the
thread that writes, `processes` how the processes of one job agree.
"""

from .errors import CheckpointError as CheckpointError
from .errors import CheckpointMismatch as CheckpointMismatch
from .store import Checkpoints as Checkpoints
from .store import Restored as Restored
