"""Your first DEQ: its models, what it measures, and how the table is kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.training import command_line
from experiments.first_deq import __main__ as first_deq
from experiments.first_deq import report
from experiments.first_deq.equilibria import Equilibria, examine, linearised
from experiments.first_deq.models import Cell, Classifier
from experiments.first_deq.rows import ROWS
from experiments.first_deq.train import Digits, Found, epoch_keys, trainer


def digits(n, seed=0):
    """Images of which the brightest tenth tells the class."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 10, n)
    images = rng.uniform(0, 0.3, (n, 64)) + 0.7 * (np.arange(64) // 7 == classes[:, None])
    return Digits(jnp.asarray(images, jnp.float32), jnp.asarray(classes, jnp.int32))


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_a_contractive_cell_scales_w_down_but_never_up(size):
    cell = Cell(8, contractive=True, rngs=nnx.Rngs(0))
    cell.w[...] = size * cell.w[...] / jnp.linalg.norm(cell.w[...], 2)
    w, _ = cell.inject(jnp.ones((2, 64)))
    assert jnp.linalg.norm(w, 2) == pytest.approx(min(size, 0.95), rel=1e-5)


@pytest.mark.parametrize("finished_only", [True, False])
def test_an_unfinished_solve_trains_the_readout_alone(finished_only):
    model = Classifier(8, max_steps=1, finished_only=finished_only, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model, nnx.Param)
    given = digits(4)

    @jax.jit
    @jax.grad
    def change(parameters):
        logits, sol = nnx.merge(graph, parameters)(given.images)
        return jnp.sum(logits**2) + 0 * sol.stats.residual.sum()

    change = nnx.merge(graph, change(parameters))
    assert np.any(change.readout.kernel[...])
    assert np.any(change.deq.cell.w[...]) != finished_only


def test_examine_solves_the_adjoint_equation():
    J = np.stack([np.diag([0.5, -0.25]), np.diag([0.75, 1.5])])
    found = examine(np.array([True, False]), J, np.ones((2, 2)))
    np.testing.assert_array_equal(found.converged, [True, False])
    np.testing.assert_allclose(found.radius, [0.5, 1.5])
    np.testing.assert_allclose(found.size, [np.hypot(2, 0.8), np.hypot(4, 2)])
    np.testing.assert_allclose(found.gain, found.size / np.sqrt(2))


def test_examine_tells_rows_of_j_from_columns():
    J, v = np.array([[[0.0, 3.0], [0.0, 0.0]]]), np.array([[1.0, 0.0]])
    assert examine(True, J, v).size == pytest.approx(np.sqrt(10))  # u = v + Jᵀv = (1, 3)


def test_linearised_is_the_derivative_at_the_equilibrium():
    model = Classifier(8, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model, nnx.Param)
    given = digits(3)
    look = linearised(lambda parameters: nnx.merge(graph, parameters), given)
    converged, J, v = (x[0] for x in look(jax.tree.map(lambda x: x[None], parameters)))
    z = jax.jit(lambda: model(given.images)[1].z)()
    assert converged.all()
    want = (1 - z**2)[:, :, None] * model.deq.cell.w[...].T
    np.testing.assert_allclose(J, want, atol=1e-4)
    wrong = jax.nn.softmax(model.readout(z)) - jax.nn.one_hot(given.classes, 10)
    np.testing.assert_allclose(v, wrong @ model.readout.kernel[...].T, atol=1e-5)


@pytest.mark.slow
def test_training_learns_and_seeds_differ():
    made = trainer(ROWS["mlp"], 16, digits(1280), digits(100, seed=1))
    state = made.start(2)
    for epoch in range(5):
        state, found = made.epoch(state, epoch_keys(2, epoch))
    assert found.accuracy.shape == (2,) and found.accuracy.min() > 0.5
    assert found.gradient[0] != found.gradient[1] and np.isnan(found.converged).all()


@pytest.mark.slow
def test_the_penalty_and_the_clip_change_what_is_learned():
    weights = {}
    given = digits(256)
    given = given._replace(images=10 * given.images)  # gradients that the clip reaches
    for name in ("picard", "picard-penalty", "picard-clip"):
        made = trainer(ROWS[name], 8, given, digits(10, seed=1))
        state, found = made.epoch(made.start(1), epoch_keys(1, 0))
        weights[name] = np.asarray(made.model(state.parameters).deq.cell.w[...])
        assert found.converged == 1 and found.gradient > 1
    penalised = weights.pop("picard-penalty")
    assert np.linalg.norm(penalised) < np.linalg.norm(weights["picard"])
    assert np.any(weights["picard-clip"] != weights["picard"])


def test_the_summary_says_what_unfinished_solves_owe():
    equilibria = Equilibria(
        converged=np.array([True, True, False, True]),
        radius=np.array([0.5, 1.2, 1.1, 0.9]),
        gain=np.array([2.0, 3.0, 70.0, 4.0]),
        size=np.array([1.0, 1.0, 4.0, 0.0]),
    )
    found = Found(np.array([[1.0, 9.0], [2.0, 3.0]]), np.array([[1.0, 0.5]]), np.array([[0.5, 1]]))
    told = report.summary("picard", found, equilibria)
    assert told["gradient"] == 9 and told["accuracies"] == [0.5, 1.0]
    assert told["unfinished"] == 0.25 and told["unstable"] == 0.25
    assert told["gain"] == 70 and told["owed"] == pytest.approx(16 / 18)
    assert report.cells(told)[2:] == [
        *("0.750", "0.500", "9.0", "25.00%", "70", "1.20", "25.00%", "89%"),
    ]


def test_the_table_keeps_other_rows_in_their_order(tmp_path):
    out = tmp_path / "first.md"
    for name, command in (("stack", "second"), ("mlp", "first")):
        told = dict(row=name, accuracies=[0.9, 0.8], gradient=2.0)
        kept = report.record(out, command, 64, told)
    assert list(kept) == ["mlp", "stack"] == list(json.loads(out.with_suffix(".json").read_text()))
    text = out.read_text("utf-8")
    assert "- first" in text and "- second" in text
    assert text.index("an MLP") < text.index("stacked 12 times")
    report.draw(kept, out.with_suffix(".png"))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_row_gets_a_sentence(capsys, tmp_path):
    flags = ["--rows", "newton", "--out", str(tmp_path / "first.md")]
    with pytest.raises(SystemExit) as stop:
        command_line(first_deq.Config, first_deq.main, flags)
    assert stop.value.code == 2 and "no row is called 'newton'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("row", ["broyden", "anderson-gain"])
def test_a_row_from_end_to_end(row, tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "first.md"
    first_deq.main(first_deq.Config(seeds=2, epochs=2, rows=(row,), width=16, samples=8, out=out))
    (told,) = json.loads(out.with_suffix(".json").read_text()).values()
    assert len(told["accuracies"]) == 2 and min(told["accuracies"]) > 0.3
    assert told["radius"] > 0 and told["gain"] > 0
