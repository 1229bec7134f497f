"""Joining the processes of a job: who they are, and how they find each other."""

from __future__ import annotations

import os

import jax

from .options import LaunchOptions, OptionError


def connect(options: LaunchOptions) -> None:
    """Make this process one of its job's, before anything else is done with JAX.

    Nothing happens in a process that is alone, and in one that is connected already.

    Args:
        options: who the others are, or that a launcher's environment says so: srun of SLURM, mpirun
            of Open MPI, a TPU pod.

    Raises:
        OptionError: the others cannot be found or reached.

    Examples:
        >>> connect(LaunchOptions())  # no launcher, no flags: alone
        >>> jax.process_count()
        1
    """
    options.check()
    launcher = _launcher()
    asked = options.distributed == "yes" or options.coordinator is not None
    if jax.distributed.is_initialized() or options.distributed == "no":
        return
    if not asked and launcher is None:
        return
    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except (ValueError, RuntimeError) as wrong:
        found = f"the environment of {launcher}" if launcher else "no launcher's environment"
        where = f"--coordinator {options.coordinator}" if options.coordinator else found
        raise OptionError(
            f"the processes of the job did not find each other by {where} "
            f"({str(wrong).splitlines()[0]}): give --coordinator HOST:PORT --processes N "
            "--process K, or --distributed no for a process on its own"
        ) from wrong


def _launcher() -> str | None:
    """Who says that this is one of several processes, if anyone does."""
    counts = {
        "SLURM": os.environ.get("SLURM_STEP_NUM_TASKS", "1"),
        "Open MPI": os.environ.get("OMPI_COMM_WORLD_SIZE", "1"),
        "a TPU pod": str(len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))),
    }
    return next((name for name, count in counts.items() if count not in ("", "1")), None)
