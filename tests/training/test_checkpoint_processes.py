"""Two processes on one directory, and restores on other meshes than the one that saved."""

import os
import socket
import subprocess
import sys
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
