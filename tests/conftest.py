"""Compilation dominates the time of these tests, and many of them compile the same programs.

So the run, its worker processes and the programs that tests start share one compilation cache,
which is thrown away at the end: a test run starts from nothing every time. And LLVM optimises
nothing: that takes longer than the tests run. (XLA's own passes, which tests look at, all run.)
Jaxlib 0.10 can do without MLIR as well, and then compiles in half the time.
"""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version

import pytest


def pytest_configure(config):
    # Tracing makes many objects and little garbage, and looking for it takes time.
    gc.set_threshold(200_000, 20, 100)
    if not hasattr(config, "workerinput"):  # the process that starts the workers
        config.compilation_cache = tempfile.mkdtemp(prefix="deqjax-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compilation_cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        if version("jaxlib").startswith("0.10."):  # later ones end at a flag that they do not know
            quick += " --xla_cpu_use_fusion_emitters=false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()


def pytest_unconfigure(config):
    if hasattr(config, "compilation_cache"):
        shutil.rmtree(config.compilation_cache, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """What a module has compiled is dropped at its end: thousands of programs are more mappings of
    memory than the kernel gives a process, and some gigabytes."""
    yield
    import jax  # not before `pytest_configure`, whose variables it reads

    jax.clear_caches()


@pytest.fixture
def on_devices():
    """Runs named programs of a file in a process with so many devices; XLA fixes their number when
    it starts. A warning there is an error."""

    def run(devices: int, file: str, names: str, timeout: float = 1200) -> str:
        flags = os.environ.get("XLA_FLAGS", "")
        environment = os.environ | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        command = [sys.executable, "-W", "error", file, *names.split()]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
