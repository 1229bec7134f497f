"""Devices to compile for, by name, whether they are there or not."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from typing import Any

import jax

from ..options import OptionError
from .chips import CHIPS, GPUS, Chip

_FORM = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)$")


def devices_of(topology: str) -> tuple[Chip, list[Any]]:
    """The kind of chip and the devices of "v5e:4x4", "v5p:2x2x1", "h100:8" or "cpu:8".

    A TPU's devices belong to as many processes as the pod has hosts; to a compiler that makes no
    difference. The devices of "cpu:N" are this machine's processor, seen N times.

    Raises:
        OptionError: an unknown topology, or one whose compiler is not installed.
    """
    found = _FORM.match(topology.replace(" ", "").lower())
    if found is not None and found[1] not in CHIPS:
        # No guess at another: whoever names a chip means that one.
        raise OptionError(
            f"--topology {topology!r}: {found[1]} is unknown here, for no published figures of it "
            f"are in the planner; known are {', '.join(sorted(CHIPS))}"
        )
    if found is None:
        raise OptionError(
            f"--topology {topology!r} is not a chip and a shape, such as v5e:4x4, v5p:2x2x1, "
            "v6e:16x16, h100:8 or cpu:8"
        )
    chip, sizes = CHIPS[found[1]], [int(n) for n in found[2].split("x")]
    if chip.name == "cpu":
        return chip, _processors(math.prod(sizes))
    if chip.name in GPUS:
        return chip, _gpus(chip.name, math.prod(sizes))
    return chip, _tpus(topology, sizes)


def _processors(count: int) -> list[Any]:
    with suppress(RuntimeError):  # JAX has started: there are as many as there are
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise OptionError(
            f"--topology cpu:{count} needs {count} devices and JAX has started with "
            f"{len(devices)}: start with XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def _tpus(topology: str, sizes: list[int]) -> list[Any]:
    # No TPU is needed, so no server must describe one, and other processes may have libtpu too.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # Some hosts have one chip; libtpu thinks of those with four.
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(sizes) == 1 else {}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **bounds).devices)
    except RuntimeError as wrong:
        said = str(wrong).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        if "not installed" in said:
            raise OptionError(
                f"--topology {topology} needs libtpu, the one of this jax: pip install "
                f"'jax[tpu]=={jax.__version__}'"
            ) from None
        raise OptionError(f"libtpu does not take --topology {topology}: {said}") from None


def _gpus(kind: str, count: int) -> list[Any]:
    # The plugin may be there without the libraries that run its programs.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    hosts, rest = divmod(count, 8)
    if count > 8 and rest:
        raise OptionError(
            f"--topology {kind}:{count} is no whole number of hosts, which have 8 GPUs each: take "
            f"{8 * hosts} or {8 * (hosts + 1)}"
        )
    shape = f"1x1x{count}" if count <= 8 else f"1x{hosts}x8"
    try:
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=GPUS[kind], topology=shape
        )
    except NotImplementedError:
        raise OptionError(
            f"--topology {kind}:{count} needs the CUDA plugin of this jax, but no GPU: pip install "
            f"'jax[cuda12]=={jax.__version__}'"
        ) from None
    return list(found.devices)
