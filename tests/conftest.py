"""Compilation dominates the time of these tests, and many of them compile the same programs.

So the run, its worker processes and the programs that tests start share one compilation cache,
which is thrown away at the end: a test run starts from nothing every time.
"""

import os
import shutil
import tempfile


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that starts the workers
        config.compilation_cache = tempfile.mkdtemp(prefix="deqjax-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compilation_cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    if hasattr(config, "compilation_cache"):
        shutil.rmtree(config.compilation_cache, ignore_errors=True)
