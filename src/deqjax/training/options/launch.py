"""Options of a job of several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..._errors import check_integer
from .errors import OptionError


@dataclass(frozen=True)
class LaunchOptions:
    """How the processes of a job on several hosts find each other (`deqjax.training.connect`)."""

    distributed: Literal["auto", "yes", "no"] = "auto"
    """be one process of several: auto where srun, mpirun or a TPU pod on GKE has started several;
    yes always asks JAX to find the others (a Cloud TPU VM), or takes the next three"""
    coordinator: str | None = None
    """host:port of process 0, where no launcher says it"""
    processes: int | None = None
    """number of processes, with --coordinator"""
    process: int | None = None
    """number of this process, from 0, with --coordinator"""

    def check(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if all(x is None for x in given):
            return
        if self.processes is None or self.process is None or self.coordinator is None:
            raise OptionError(
                "--coordinator, --processes and --process go together: give all three"
            )
        check_integer("--processes", self.processes, least=1)
        check_integer("--process", self.process, least=0)
        if self.process >= self.processes:
            raise OptionError(
                f"--process counts from 0: with --processes {self.processes} it is at most "
                f"{self.processes - 1}; got {self.process}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise OptionError(
                f"--coordinator is host:port, such as node0:1234; got {self.coordinator!r}"
            )
        if self.distributed == "no":
            raise OptionError("--distributed no and --coordinator contradict each other: drop one")
