"""Memory that a process keeps is not cleared again by the system."""

import os
import platform
import subprocess
import sys

import pytest

from deqjax.training.host_memory import SETTINGS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="about glibc's malloc"
)

# Page faults of calls of one program, with some 40 MB of temporary memory.
PROGRAM = """
import resource, statistics
import jax, jax.numpy as jnp
from deqjax.training import keep_freed_memory

kept = keep_freed_memory()
x = jnp.ones(10_000_000)

@jax.jit
def f(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y + x), x).sum()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = [faults() for _ in range(25)]
size = f.lower(x).compile().memory_analysis().temp_size_in_bytes
print(kept, size, round(statistics.median(counts)), sum(counts))
"""


def measured(**variables):
    """(kept, bytes of temporary memory, page faults of a call: the median), in a fresh process."""
    env = {k: v for k, v in os.environ.items() if k not in (*SETTINGS, "GLIBC_TUNABLES")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, size, faults, _ = run.stdout.split()
    return kept == "True", int(size), int(faults)


def test_a_program_finds_its_temporary_memory_as_it_left_it():
    kept, size, faults = measured()
    assert kept and 33e6 < size < 60e6
    _, _, by_default = measured(GLIBC_TUNABLES="glibc.malloc.tcache_count=7")
    assert faults < 100 < by_default


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_says_stands(name, monkeypatch):
    from deqjax.training import keep_freed_memory

    monkeypatch.setenv(name, "65536")
    assert not keep_freed_memory()
