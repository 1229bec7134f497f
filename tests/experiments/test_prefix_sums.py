"""Prefix sums by a network that settles: the command, in small."""

import json

import numpy as np
import pytest

from deqjax.training import command_line
from experiments.prefix_sums import __main__ as prefix_sums
from experiments.prefix_sums import proof, report
from experiments.prefix_sums.task import strings


def test_the_parity_of_every_prefix():
    x, parity = strings(np.random.default_rng(0), 3, 6)
    assert x.shape == (3, 6, 1) and set(np.unique(x)) == {-1, 1}
    for i in range(6):
        np.testing.assert_array_equal((x[:, : i + 1, 0] > 0).sum(1) % 2, parity[:, i])


def test_the_table_adds_up():
    row = dict(stacked=False, solver="Picard", length=8, strings=10, right_unconverged=1)
    some = [
        proof.Row(seed=s, right=8, converged=9, certified=7, wrong_converged=1, wrong_certified=0,
                  steps=4.0 * s, compacted=0.5, **row)
        for s in (1, 2)
    ]  # fmt: skip
    stack = [proof.Row(**vars(r) | dict(stacked=True)) for r in some]
    text = report.tables(some + stack)
    assert "| Picard | 8 | 20 | 80.0% | 90.0% | 2 of 18 | 70.0% | 0 of 14 | 2 of 2 | 6 |" in text


@pytest.mark.slow
def test_it_learns_and_a_certified_answer_is_right(tmp_path, monkeypatch):
    """Short strings and few updates; longer ones in the test."""
    monkeypatch.setattr(report, "OUT", tmp_path / "out.md")
    flags = ["--seeds", "0", "--bits", "16", "--steps", "500", "--cheap-steps", "250"]
    flags += ["--test-lengths", "16", "48", "--strings", "40", "--runs", str(tmp_path)]
    command_line(prefix_sums.Config, prefix_sums.main, flags)
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    rows = [proof.Row(**r) for r in found if not r["stacked"]]
    for row in rows:
        assert row.wrong_certified <= 0.05 * row.certified
    (long,) = [r for r in rows if r.solver == "Picard" and r.length == 48]
    assert long.right >= 38 and long.certified >= 36
