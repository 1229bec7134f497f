"""The benchmarks run, on tiny shapes and without peers, and the report says what was missed."""

import numpy as np
import pytest

import deqjax
from experiments.benchmarks import backward, compile_time, memory, peers, per_step, timing
from experiments.benchmarks.__main__ import NAMES, Config, main, measure
from experiments.benchmarks.cells import cells, near_singular, tanh
from experiments.benchmarks.report import Row, Settings, at_least, at_most, info, record, table

QUICK = Settings(quick=True, peers=())
REFERENCE, *_ = cells(quick=True)


def test_a_missed_limit_is_a_fail_and_is_counted(tmp_path):
    rows = [
        at_most("slow", 1.2, 1.15),
        at_most("fast", 1.15, 1.15),
        at_least("saves", 0.2, 0.3),
        info("note", "a|b"),
        Row("by hand", "no", "yes", False),
    ]
    assert [row.verdict for row in rows] == ["FAIL", "pass", "FAIL", "", "FAIL"]
    path = tmp_path / "report.md"
    record(path, "fake", "A fake table", rows, "the command")
    text = path.read_text()
    assert "| slow | 1.2 | <= 1.15 | FAIL |" in text and "| fast | 1.15 | <= 1.15 | pass |" in text
    assert "1 of 4 requirements pass" in text and "`the command`" in text and "a\\|b" in text
    assert table(rows).count("FAIL") == 3


def test_a_report_keeps_what_other_runs_measured(tmp_path):
    path = tmp_path / "report.md"
    record(path, "a", "First", [at_most("x", 2, 1)], "measure a")
    record(path, "b", "Second", [at_most("y", 1, 1)], "measure b")
    record(path, "a", "First", [at_most("x", 1, 1)], "measure a again")
    text = path.read_text()
    assert "2 of 2 requirements pass" in text and "`measure a`" not in text
    assert text.index("measure a again") < text.index("measure b")


def test_what_diverged_has_no_small_residual():
    huge = np.full((2, 8, 16), 1e30, np.float32)
    z = np.zeros_like(huge)
    assert peers.adjoint_residual(REFERENCE, z, huge) > 0.01
    assert not peers.adjoint_residual(REFERENCE, z, np.full_like(huge, np.inf)) <= 1e-5


def test_no_rounding_hides_a_miss():
    row = at_most("close", 1.15000001, 1.15)
    assert row.measured == "1.15" and row.verdict == "FAIL"


def test_a_benchmark_that_breaks_off_fails_and_the_others_run(capsys):
    def broken(settings):
        raise RuntimeError("out of paper")

    runs = {"a": ("A", broken), "b": ("B", lambda settings: [at_most("x", 1, 2)])}
    tables = measure(("a", "b"), QUICK, runs)
    assert [rows[0].verdict for _, rows in tables.values()] == ["FAIL", "pass"]
    assert "out of paper" in capsys.readouterr().out


def test_interleaved_times_are_compared_within_a_round():
    times = timing.Times({"a": np.array([1.0, 20.0, 3.0]), "b": np.array([0.5, 10.0, 1.5])})
    assert times.ratio("a", "b").median == 2.0 and times.fastest(["a", "b"]) == "b"
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    timing.interleaved(functions, rounds=2, seconds=0.0)
    # 3 to compile and to choose the block, then a round forward and one backward, 2 calls each.
    assert "".join(calls) == "aaabbb" + "aabb" + "bbaa"


@pytest.mark.slow
@pytest.mark.parametrize("cell", cells(quick=True), ids=lambda cell: cell.name)
def test_every_cell_has_a_fixed_point_that_deqjax_finds(cell):
    solve = peers.deqjax_solve(deqjax.Anderson(), 1e-5, None)
    z = peers.forward_call(cell, lambda *given: solve(*given).z)()
    assert peers.true_residual(cell, z) <= 1.05e-5
    assert peers.true_residual(cell, z + 0.1) > 1e-3, "the residual would be seen"


@pytest.mark.parametrize("cell", cells(quick=True), ids=lambda cell: cell.name)
def test_torch_cells_are_the_same_functions(cell):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.peers_torch import tensors

    z = np.float32(np.random.default_rng(9).normal(size=cell.z0.shape))
    theta, x, _ = tensors(cell)
    found = cell.torch_f(torch.tensor(z), theta, x).numpy()
    np.testing.assert_allclose(found, cell.f(z, cell.theta, cell.x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_budget_is_the_fewest_steps():
    """A linear iteration, whose residuals are known: rel = 0.3/... falls by 0.5 a step."""
    f = lambda z: 0.5 * z + 1
    rule = peers.Rule(
        start=lambda f, z: (z, z),
        advance=lambda f, s: (s[1], f(s[1])),
        known=lambda s: s,
        returned=lambda s: s[1],
    )
    # z_k = 2 − 2^(1−k), f(z_k) − z_k = 2^−k: the return value of 9 steps is the first below 1e-3.
    assert peers.fewest(f, np.zeros(1, np.float32), rule, 1e-3) == (9, 10)


def test_the_adjoint_of_deqjax_is_read_off_right():
    solve = peers.deqjax_solve(deqjax.Anderson(), 1e-6, None)
    z, u = peers.solved_adjoint(REFERENCE, lambda *given: solve(*given).z)
    assert peers.adjoint_residual(REFERENCE, z, u) <= 1.05e-6
    assert peers.adjoint_residual(REFERENCE, z, 0 * u) > 0.1


@pytest.mark.slow
def test_steps_of_timed_solves_are_counted():
    with pytest.raises(RuntimeError, match="took"):
        per_step.fixed_steps(tanh(batch=1, d=2, gain=0.0), deqjax.Picard(), 12, None)


@pytest.mark.slow
def test_the_hand_written_picard_is_right():
    """Else its compile time would compare with nothing."""
    given = (REFERENCE.theta, REFERENCE.x)
    losses = compile_time.by_hand(REFERENCE, 1e-6), compile_time.ours(REFERENCE, "picard", None)
    (a, da), (b, db) = (compile_time.jax.value_and_grad(f, (0, 1))(*given) for f in losses)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(da[1], db[1], atol=1e-4 * np.abs(db[1]).max())


@pytest.mark.slow
def test_adjoint_steps_and_bare_vjps():
    steps = backward.adjoint_steps(REFERENCE, "picard", None)
    forward, pull_back = backward.passes(REFERENCE, "picard", None)
    z, saved = forward()
    theta_bar, x_bar = pull_back(saved)
    assert 5 < steps < 100 and x_bar.shape == z.shape
    like = backward.bare_vjps(REFERENCE, z, 3)()
    assert {k: a.shape for k, a in like[0].items()} == {k: a.shape for k, a in theta_bar.items()}


@pytest.mark.slow
def test_memory_is_measured():
    few, many = (
        memory.temporary_bytes(REFERENCE, deqjax.Picard(), "unrolled", None, k) for k in (4, 32)
    )
    assert many > 2 * few > 0


def test_the_near_singular_cell_is_near_singular():
    w = near_singular(2, 64, 0.999).theta["w"]
    assert abs(np.linalg.eigvalsh(w).max() - 0.999) < 1e-5


@pytest.mark.slow
def test_the_command_writes_a_report(tmp_path, capsys):
    out = tmp_path / "report.md"
    main(Config(only=("compacted",), quick=True, out=out, peers=()))
    text = out.read_text()
    assert text.startswith("# Benchmarks") and "CPU cores" in text and "Compacted" in text
    assert "jax " in text and "written:" in capsys.readouterr().out


def test_absent_peers_are_named():
    said = []
    assert peers.present(Settings(peers=("json", "no_such_library")), said.append) == ["json"]
    assert said == ["peer no_such_library is skipped: no_such_library not installed"]


def test_all_benchmarks_are_modules():
    import importlib

    for name in NAMES:
        module = importlib.import_module(f"experiments.benchmarks.{name}")
        assert callable(module.run) and module.TITLE
