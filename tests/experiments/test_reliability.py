"""The table of reliability: what makes it, in small, and that it would see a loss."""

from pathlib import Path

import pytest

from deqjax.training import command_line
from experiments.reliability import __main__ as reliability
from experiments.reliability import damage, trials
from experiments.reliability.report import record
from experiments.reliability.trials import Outcome, Reference


def test_parts_are_added_to_the_table(tmp_path):
    out = tmp_path / "reliability.md"
    record(out, "kills", [Outcome("SIGKILL", 5, 5, "all bits")])
    record(out, "damage", [Outcome("a bit", 7, 6, "the state", ("one file",))])
    record(out, "kills", [Outcome("SIGKILL", 9, 9, "all bits")])
    text = out.read_text()
    assert "| SIGKILL | 9 | 9 | all bits.  |" in text and "| SIGKILL | 5 |" not in text
    assert "| a bit | 7 | 6 | the state. one file |" in text


def test_runs_that_differ_are_told_apart():
    one = dict(done=True, step=3, state="a", rows=[1])
    assert trials.same(one, one) == []
    assert trials.same(one | dict(state="b", rows=[2]), one) == ["state", "rows"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reliability"))


@pytest.mark.slow
def test_a_damage_that_nobody_tells_is_counted_as_a_loss(reference, monkeypatch):
    found = damage.outcomes(reference, 1, 0)
    assert all(o.kept == o.trials > 3 for o in found), found
    monkeypatch.setattr(damage, "_flip", lambda path, draw: None)
    (blind, *_) = damage.outcomes(Reference(reference.folder / "again"), 1, 0)
    assert blind.kept == 0 and "another state" in blind.notes[0]


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path):
    out = Path(tmp_path / "reliability.md")
    command_line(reliability.Config, reliability.main, ["--trials", "5", "--out", str(out)])
    rows = [line.split(" | ") for line in out.read_text().splitlines() if " | " in line][2:]
    assert len(rows) == 8 and all(row[1] == row[2] for row in rows), rows
