"""Two processes on one directory, and restores on other meshes than the one that saved."""

import os
import random
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import pytest

from deqjax.training.checkpoints import Checkpoints

sys.path.insert(0, str(Path(__file__).parent))
import checkpoint_processes as program


def start(devices: int, *arguments) -> subprocess.Popen:
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, program.__file__, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_one_process_to_two_and_back(tmp_path):
    template = program.values(0)
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(7, program.values(7), {"seconds": 1.5})
    port = free_port()
    processes = [start(2, tmp_path, "job", index, port) for index in (0, 1)]
    processes.append(start(3, tmp_path, "alone"))
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
            assert "Traceback" not in output
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with Checkpoints(tmp_path / "two") as checkpoints:
        restored = checkpoints.restore(template)
        assert restored is not None and restored.step == 4
        program.assert_restored(restored.tree, 4, template)
        assert jax.device_count() == 1


@pytest.mark.slow
def test_kills_of_both_processes_in_the_middle_of_saving(tmp_path):
    delays = random.Random(0)
    template = program.values(0)
    step = 0
    for _ in range(3):
        port = free_port()
        processes = [start(2, tmp_path, "on_and_on", index, port) for index in (0, 1)]
        first, second = processes
        assert first.stdout is not None
        lines = (line.split() for line in first.stdout)
        said = (int(words[1]) for words in lines if words[:1] == ["step"])
        try:
            # The third begins when the second is on the disk.
            assert [next(said) for _ in range(3)] == [step + 1, step + 2, step + 3]
            time.sleep(delays.uniform(0.0, 0.3))
        finally:
            for process in (second, first):
                process.kill()
        last = max(said, default=step + 3)
        for process in processes:
            process.communicate()
        with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing may even look damaged
            restored = checkpoints.restore(template)
        assert restored is not None
        program.assert_restored(restored.tree, restored.step, template)
        step = restored.step
        assert last - 1 <= step <= last + 1, "at most the save under way is lost"
