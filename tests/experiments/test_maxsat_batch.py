"""The timed training batch of the MAXSAT layer."""

import json

import numpy as np
import pytest

from experiments import maxsat_batch


def test_boards_have_one_value_a_cell_and_cells_are_given_whole():
    size = maxsat_batch.Size(4, 10, 30, 4, 5)
    S, boards, given = maxsat_batch.drawn(size)
    assert S.shape == (64 + 10 + 1, 30) and boards.shape == given.shape == (5, 64)
    cells = lambda x: np.asarray(x).reshape(5, 16, 4)
    np.testing.assert_array_equal(cells(boards).sum(axis=2), 1)
    assert (cells(given).all(axis=2) == cells(given).any(axis=2)).all()


@pytest.mark.slow
def test_the_table_keeps_other_versions(tmp_path):
    out = tmp_path / "batch.md"
    maxsat_batch.main(maxsat_batch.Config(quick=True, rounds=2, out=out))
    data = json.loads(out.with_suffix(".json").read_text())
    (run,) = data.values()
    assert [len(x) for x in run["seconds"].values()] == [2, 2]
    assert min(run["counted"]["sweeps"]) >= 1
    out.with_suffix(".json").write_text(json.dumps({"another": run}))
    maxsat_batch.main(maxsat_batch.Config(quick=True, rounds=1, out=out))
    text = out.read_text()
    assert "## another" in text and text.count("| <= 5 | pass |") == 2
