"""Four devices: shard_map, jit with NamedSharding, pmap, explicit sharding."""

import os
import subprocess
import sys

import pytest

from . import sharding_programs


@pytest.mark.parametrize("program", [p.__name__ for p in sharding_programs.PROGRAMS])
def test_on_four_devices(program):
    """Each program compares with the same computation on one device."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", sharding_programs.__file__, program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
