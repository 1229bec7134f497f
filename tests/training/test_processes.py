"""Two processes of two devices each train one model: killed, stopped, continued, and continued on
another number of devices."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deqjax.training import Checkpoints, LaunchOptions, OptionError, connect, read_metrics

PROGRAM = Path(__file__).with_name("process_programs.py")


def start(
    folder: Path, count: int, *changes: str, last=(), launcher=None
) -> list[subprocess.Popen]:
    """A job of `count` processes, each with two devices; the last one with changes of its own. They
    find each other by their arguments, or by what `launcher(index, port)` adds to the environment.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, str(PROGRAM), str(folder)]
    job = []
    for index in range(count):
        given = [str(index), str(count), "launched" if launcher else str(port), *changes]
        given += last if index == count - 1 else ()
        here = environment | (launcher(index, port) if launcher else {})
        job.append(subprocess.Popen([*command, *given], env=here, **pipes))
    return job


def slurm(index: int, port: int) -> dict[str, str]:
    """What srun sets for one of two tasks on one node."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


def open_mpi(index: int, port: int) -> dict[str, str]:
    """What mpirun sets for one of two processes on one host."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


def finish(job: list[subprocess.Popen]) -> list[str]:
    """What they print; all must end well."""
    try:
        said = [process.communicate(timeout=600)[0] for process in job]
    finally:
        for process in job:
            process.kill()
    assert all(process.returncode == 0 for process in job), said
    return said


def rows(folder: Path) -> list[dict]:
    kept = read_metrics(folder / "run")
    for row in kept:
        row.pop("tokens_per_second", None)
        row.pop("input_wait", None)
    return kept


def wait_for_rows(folder: Path, job: list[subprocess.Popen], count: int) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
        assert all(process.poll() is None for process in job), finish(job)
        assert time.monotonic() < deadline, f"the job never reached step {count}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a job of which one process was killed, and which then went on; and the rows
    that it had written before."""
    folder = tmp_path_factory.mktemp("killed")
    job = start(folder, 2, "mesh=data=2,fsdp=2")
    wait_for_rows(folder, job, 8)
    job[1].send_signal(signal.SIGKILL)
    job[1].communicate()
    time.sleep(1)
    job[0].kill()  # as a launcher does, which restarts all of them
    job[0].communicate()
    before = rows(folder)
    said = finish(start(folder, 2, "mesh=data=2,fsdp=2"))
    # Both have the result, and only the first shows how the work goes on.
    assert said[0].splitlines()[-1].split()[1] == said[1].splitlines()[-1].split()[1]
    assert "continuing at step" in said[0] and "step " not in said[1]
    return folder, before


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_bit_for_bit(killed):
    folder, before = killed
    after = rows(folder)
    assert [row["step"] for row in after] == list(range(1, 25))
    assert after[: len(before)] == before
    assert (folder / "run" / "result.json").exists()


@pytest.mark.slow
def test_sigterm_to_one_stops_all_and_they_go_on_with_fewer_devices(killed, tmp_path):
    job = start(tmp_path, 2, "mesh=data=2,fsdp=2")
    wait_for_rows(tmp_path, job, 5)
    job[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=600)[0] for process in job]
    stopped = rows(tmp_path)[-1]["step"]
    assert 5 <= stopped < 24, said
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest == stopped
    for text in said:
        assert f"stopped after step {stopped}; the same command continues" in text
    finish(start(tmp_path, 1))  # shard_map on data=2
    one, other = rows(killed[0]), rows(tmp_path)
    assert other[:stopped] == one[:stopped]
    assert [row["step"] for row in other] == list(range(1, 25))
    np.testing.assert_allclose(other[stopped]["loss"], one[stopped]["loss"], rtol=1e-4)


@pytest.mark.parametrize(
    "launcher", [None, *(pytest.param(x, marks=pytest.mark.slow) for x in (slurm, open_mpi))]
)
def test_processes_find_each_other_and_whose_options_differ(launcher, tmp_path):
    job = start(tmp_path, 2, last=("seed=1",), launcher=launcher)
    said = [process.communicate(timeout=600)[0] for process in job]
    for text in said:
        assert "process 1 was started with other options than process 0 (seed is 1 there" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(coordinator="here:1"), "--coordinator, --processes and --process go together"),
        (dict(coordinator="here:1", processes=2, process=2), "at most 1; got 2"),
        (dict(coordinator="here", processes=2, process=1), "host:port, such as node0:1234"),
        (dict(coordinator="h:1", processes=2, process=1, distributed="no"), "contradict"),
    ],
)
def test_launch_options_that_cannot_be(given, sentence):
    with pytest.raises(OptionError, match=sentence):
        connect(LaunchOptions(**given))


def test_a_launcher_that_jax_does_not_know_gets_a_sentence(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # and nothing else of mpirun
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(OptionError, match=r"by the environment of Open MPI .* --coordinator HOST"):
        connect(LaunchOptions())
    connect(LaunchOptions(distributed="no"))
