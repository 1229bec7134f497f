"""A second start in the folder of a run: on other data, beside the first, with other options."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from deqjax.data import Stream, Vocabulary
from deqjax.training import (
    PLACE_OF_DATA,
    OptionError,
    Task,
    TrainOptions,
    fingerprint,
    fit,
    read_metrics,
)
from deqjax.training import lock as lock_
from deqjax.training.beginning import described
from deqjax.training.extending import going_on
from deqjax.training.folder import check_same, claim
from deqjax.training.identity import DATA, describe
from deqjax.training.lock import Lock

from . import tiny_run


class Untouched(Task):
    """A task that is refused before anything of it is made."""

    def __init__(self, *data):
        self.data = data

    def fingerprint(self):
        return fingerprint(*self.data)


@dataclass(frozen=True)
class Config:
    width: int = 8
    data_dir: str | None = field(default=None, metadata=PLACE_OF_DATA)
    train: TrainOptions = field(default_factory=TrainOptions)


def content(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.fixture
def begun(tmp_path):
    """A folder of a run on the numbers 0, 1, 2."""
    folder = tmp_path / "run"
    folder.mkdir()
    vocabulary = Vocabulary.build("ab", "char")
    claim(folder, described(Untouched(np.arange(3)), Config()), {"v.json": vocabulary.save})
    return folder


def start(folder, *data, config=None, **changes):
    config = config or Config()
    options = TrainOptions(runs=folder.parent, name="run", **changes)
    files = {"v.json": Vocabulary.build("ab", "char").save}
    fit(Untouched(*data), options, replace(config, train=options), name="run", files=files)


def test_other_data_are_refused_and_the_folder_stays_as_it_is(begun):
    before = content(begun)
    for data in (np.arange(4), np.arange(3.0), np.arange(3)[::-1]):
        with pytest.raises(OptionError, match=r"a run on other data .*--restart") as refused:
            start(begun, data)
        assert "\n" not in str(refused.value)
    with pytest.raises(OptionError, match=r"width was 8, now 9"):
        start(begun, np.arange(3), config=Config(width=9))
    assert content(begun) == before


def test_what_is_written_how_often_and_where_the_data_lie_may_change(begun):
    told = json.loads((begun / "config.json").read_text())
    often = TrainOptions(log_every=1, eval_every=2, checkpoint_every=3, tensorboard=True, steps=9)
    config = Config(data_dir="elsewhere", train=often)
    check_same(begun, config, describe(config) | {DATA: told[DATA]}, {})


def test_a_run_of_the_former_version_goes_on_where_its_data_were(begun):
    """It has no fingerprint, and none of the options that came since."""
    told = json.loads((begun / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps(told | {"data_dir": "here"}))
    told = {k: v for k, v in told.items() if k not in (DATA, "beta2")} | {"data_dir": "here"}
    (begun / "config.json").write_text(json.dumps(told))
    same = Config(data_dir="here")
    now = describe(same) | {DATA: "now known"}
    files = lambda text: {"v.json": Vocabulary.build(text, "char").save}
    check_same(begun, same, now, files("ab"))
    with pytest.raises(OptionError, match=r"another v\.json than these data give"):
        check_same(begun, same, now, files("ac"))
    moved = Config(data_dir="there")
    with pytest.raises(OptionError, match=r"data_dir was 'here', now 'there'"):
        check_same(begun, moved, describe(moved) | {DATA: "now known"}, {})
    other = Config(data_dir="here", train=TrainOptions(beta2=0.9))
    with pytest.raises(OptionError, match=r"beta2 was 0\.98, now 0\.9"):
        check_same(begun, other, describe(other), {})
    (begun / "config.json").write_text(json.dumps(told | {"gone": 3}))
    with pytest.raises(OptionError, match=r"gone was 3, and there is no such option now"):
        check_same(begun, same, describe(same), {})
    (begun / "config.json").write_text("{")
    with pytest.raises(OptionError, match=r"config\.json cannot be read"):
        check_same(begun, same, describe(same), {})


def test_the_streams_of_a_language_model_are_its_data():
    task = tiny_run.task()
    ids = np.array(task.train.ids)
    same = replace(task, train=replace(task.train, ids=ids.copy(), batch_size=4))
    assert same.fingerprint() == task.fingerprint()
    ids[7] += 1
    for text in ("train", "valid"):
        other = replace(task, **{text: Stream(ids, 2, 6, 0)})
        assert other.fingerprint() != task.fingerprint()


# The lock without the package around it, which would take seconds to import.
HOLDER = """
import sys, time, types
from pathlib import Path
package, options = types.ModuleType("package"), types.ModuleType("package.options")
package.__path__, options.OptionError = [sys.argv[2]], ValueError
sys.modules |= {"package": package, "package.options": options}
from package.lock import Lock
with Lock(Path(sys.argv[1])) as lock:
    lock.take()
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_second_process_hears_of_the_first_until_that_is_killed(begun):
    command = [sys.executable, "-c", HOLDER, str(begun), os.path.dirname(lock_.__file__)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "taken\n"
        before = content(begun)
        for changes in ({}, {"restart": True}):
            said = rf"at work on .*/run \(process {first.pid} on .*, since .*\): wait until it ends"
            with pytest.raises(OptionError, match=said):
                start(begun, np.arange(3), **changes)
        assert content(begun) == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with Lock(begun) as lock:
        lock.take()
    assert not (begun / ".lock").read_bytes(), "nobody is at work any more"


def test_a_restart_deletes_the_run_and_keeps_the_lock(begun):
    (begun / "checkpoints").mkdir()
    with pytest.raises(NotImplementedError):  # it gets as far as building a model
        start(begun, np.arange(4), restart=True)
    assert sorted(p.name for p in begun.iterdir()) == [".lock", "config.json", "v.json"]
    assert json.loads((begun / "config.json").read_text())[DATA] == fingerprint(np.arange(4))


def test_a_restart_deletes_nothing_but_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letters.txt").touch()
    with pytest.raises(OptionError, match=r"is not the folder of a run .* --restart would delete"):
        start(tmp_path / "run", np.arange(3), restart=True)
    assert (tmp_path / "run" / "letters.txt").exists()


def test_a_filesystem_without_locks_gets_a_warning(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_.fcntl, "flock", flock)
    with Lock(tmp_path) as lock, pytest.warns(RuntimeWarning, match="cannot be locked .No locks"):
        lock.take()


def test_runs_that_cannot_be_a_folder_get_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for runs in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match=rf"{tmp_path}/file is a file: --runs and --name"):
            start(runs / "run", np.arange(3))

    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock_.os, "open", denied)
    with pytest.raises(OptionError, match=r"be written \(Permission denied\): choose --runs"):
        Lock(tmp_path / "run").take()


def test_more_steps_mean_what_the_schedule_says():
    cosine = TrainOptions(steps=120, warmup=10)
    before = describe(replace(cosine, steps=60))
    assert going_on(cosine, describe(cosine), 60) is None
    said = going_on(cosine, before, 60)
    assert said and re.search(
        r"ends at step 120 and not at 60: .* it is 0\.0018, .* 0\.00015", said
    )
    for schedule in ("constant", "plateau"):
        assert going_on(replace(cosine, schedule=schedule), before, 60) is None
    with pytest.raises(OptionError, match=r"has done 60 steps, and --steps is 30"):
        going_on(replace(cosine, steps=30), before, 60)
    with pytest.raises(OptionError, match=r"--eval-every was 250, now 9"):
        going_on(replace(cosine, schedule="plateau", eval_every=9), before, 60)


@pytest.mark.slow
def test_a_run_that_was_extended_is_the_longer_run(tmp_path):
    given = dict(schedule="constant", steps=9)
    tiny_run.train(tmp_path / "longer", **given)
    tiny_run.train(tmp_path / "extended", **(given | dict(steps=5)))
    tiny_run.train(tmp_path / "extended", **given, log_every=2)
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(tmp_path / name / "run")}
        for name in ("longer", "extended")
    ]
    assert losses[1].keys() == {1, 2, 3, 4, 5, 6, 8, 9}
    assert all(losses[0][step] == loss for step, loss in losses[1].items())
