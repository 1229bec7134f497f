"""The comparison of quadratic programs with other libraries."""

import json

import jax
import numpy as np
import pytest

from experiments.qp_peers import __main__ as command
from experiments.qp_peers import report
from experiments.qp_peers.libraries import libraries
from experiments.qp_peers.programs import lacking, references, strictly_convex


def measured(library, forward, backward, dtype="float64"):
    return report.Measured(dtype, library, forward, backward, 4, 1e-9, 1e-3, 1e-3)


def test_ratios_are_of_the_fastest_peer_round_by_round():
    found = [
        measured("deqjax", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        measured("slow", [9.0, 9.0, 9.0], [4.0, 4.0, 4.0]),
        measured("fast", [4.0, 4.0, 5.0], [40.0, 40.0, 40.0]),
    ]
    forward, backward = report.ratios(found)
    assert (forward["peer"], backward["peer"]) == ("fast", "slow")
    np.testing.assert_allclose(forward["ratio"], 0.5)
    assert not forward["ok"] and not backward["ok"]
    assert "| fast | 0.500 [0.375, 0.550] | <= 0.4 | FAIL |" in report.summary(found)


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_what_lacks_and_the_references_are_of_the_programs():
    programs = strictly_convex(3, 6, 3, 2)
    own = libraries()[0]
    found = own.answer(tuple(map(jax.numpy.asarray, programs)), 1e-9)
    assert (lacking(programs, found.z, found.nu, found.lam) < 1e-12).all()
    moved = found.z + 1e-3
    assert (lacking(programs, moved, found.nu, found.lam) > 1e-4).all()
    z_bar = np.random.default_rng(0).standard_normal(programs.q.shape)
    want, step = references(programs, z_bar)[1], 1e-6
    way = np.random.default_rng(1).standard_normal(programs.A.shape)
    ends = [
        own.solution(tuple(map(jax.numpy.asarray, programs._replace(A=programs.A + s * way))), 1e-9)
        for s in (step, -step)
    ]
    slope = np.sum((ends[0] - ends[1])[1] * z_bar[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(want.A * way[1]), slope, rtol=1e-6)


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def test_a_missing_peer_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [library.name for library in libraries()] == ["deqjax"]
    alone = [measured("deqjax", [1.0], [2.0])]
    report.record(tmp_path / "peers.md", alone, batch=4, n=8, rounds=1)
    text = (tmp_path / "peers.md").read_text()
    assert "jaxopt was not installed, and is left out. qpax was not" in text


@pytest.mark.slow
def test_a_quick_run_measures_all_and_keeps_other_versions(tmp_path):
    out = tmp_path / "peers.md"
    command.main(command.Config(quick=True, out=out))
    first = json.loads(out.with_suffix(".json").read_text())
    (version,) = first
    run = first[version]
    names = [(m["dtype"], m["library"]) for m in run["measured"]]
    assert names[0] == ("float64", "deqjax") and ("float32", "deqjax") in names
    for m in run["measured"]:
        exact = {"deqjax": 1e-12, "jaxopt OSQP": 1e-4}.get(m["library"])
        if m["dtype"] == "float64" and exact:
            assert m["converged"] == 4 and m["gradient"] < exact and m["kkt"] < 1e-8
    text = out.read_text()
    for peer in report.PEERS:
        assert (f"{peer} was not installed" in text) == (peer not in run["versions"])
    data = {"another": run} | first
    out.with_suffix(".json").write_text(json.dumps(data))
    report.record(out, [report.Measured(**m) for m in run["measured"]], batch=4, n=8, rounds=2)
    assert "## another" in out.read_text()
