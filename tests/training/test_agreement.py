"""What the processes of a job say to each other, here by threads that stand for them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deqjax.training.checkpoints import CheckpointError
from deqjax.training.checkpoints.processes import Processes


@pytest.fixture
def job():
    """Three processes that meet at a barrier of threads."""
    barrier = threading.Barrier(3)
    made = [Processes("test") for _ in range(3)]
    for k, process in enumerate(made):
        process.index, process.count = k, 3
        process._barrier = lambda key, timeout_ms: barrier.wait(10)
    return made


def outcomes(job, work, decide, through) -> list:
    """What `agree` returns or raises on each; `work` is given the process's number, `through` may
    be another folder on each."""

    def one(process):
        folder = through[process.index]
        try:
            return process.agree(lambda: work(process.index), decide, through=folder)
        except Exception as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(one, job))


def full(*_):
    raise OSError(28, "No space left on device")


def test_all_hear_what_the_first_decides(job, tmp_path):
    words = tmp_path / "words"
    for _ in range(2):  # the second time over the same folder
        assert outcomes(job, lambda k: 10**k, sum, [words] * 3) == [111] * 3
        assert not words.exists()


def test_what_fails_on_one_is_raised_on_all(job, tmp_path):
    def work(k):
        return full() if k == 1 else k

    decided = []
    found = outcomes(job, work, decided.append, [tmp_path / "words"] * 3)
    assert decided == []
    assert [type(error) for error in found] == [CheckpointError, OSError, CheckpointError]
    assert str(found[0]) == str(found[2]) == "process 1: No space left on device"


def test_what_the_decision_raises_is_raised_on_all(job, tmp_path):
    found = outcomes(job, lambda k: k, full, [tmp_path / "words"] * 3)
    assert [type(error) for error in found] == [OSError, CheckpointError, CheckpointError]
    assert str(found[1]) == "process 0: No space left on device"


def test_a_word_that_is_missing_is_a_failure(job, tmp_path):
    words = tmp_path / "words"
    (tmp_path / "file").touch()
    decided = []
    found = outcomes(job, lambda k: k, decided.append, [words, words, tmp_path / "file" / "words"])
    assert decided == []
    assert str(found[0]) == str(found[1]) == "process 2: it failed, and could not write why"
    assert isinstance(found[2], CheckpointError)


def test_processes_that_do_not_come_are_told_of(job, tmp_path):
    def broken(key, timeout_ms):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    job[0]._barrier = broken
    with pytest.raises(CheckpointError, match="no word from the others: DEADLINE_EXCEEDED"):
        job[0].agree(lambda: 1, sum, through=tmp_path / "words")
