"""The pure training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.layout import Format, Layout

import deqjax
from deqjax.training import Phase, Plateau, Task, TrainOptions, make_step, new_state
from deqjax.training.parallel import Parallel
from deqjax.training.schedules import learning_rate, optimiser


class Regression(Task):
    """z* = tanh(W z* + x) against a target: a step whose gradient is known by other means."""

    def build(self, rngs):
        return deqjax_cell(rngs)

    def carry(self):
        return jnp.zeros(())

    def probe(self, phase, rows):
        return deqjax.adjoint_probe(rows)

    def loss(self, model, carry, batch, *, step, phase, probe):
        sol = model(batch["x"], **phase.keywords(60), adjoint_probe=probe)
        loss = jnp.sum((sol.z - batch["y"]) ** 2)
        return loss, (carry + 1, {"solve": sol.stats})


class Cell(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, kernel_init=nnx.initializers.normal(0.2), rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.linear(z) + x)


def deqjax_cell(rngs):
    from deqjax.nn import DEQ

    return DEQ(Cell(rngs), rtol=1e-6, max_steps=60)


@pytest.fixture
def batch():
    draw = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    return {"x": draw[0], "y": draw[1]}


def test_one_step_is_gradient_descent_through_the_equilibrium(batch):
    task, sgd = Regression(), optax.sgd(0.1)
    graph, state = new_state(task, sgd, seed=0)
    stepped, metrics = jax.jit(make_step(task, graph, sgd))(state, batch)

    kernel, bias = state.params["cell"]["linear"]["kernel"], state.params["cell"]["linear"]["bias"]

    def unrolled(kernel, bias):
        z = jnp.zeros((3, 4))
        for _ in range(80):
            z = jnp.tanh(z @ kernel + bias + batch["x"])
        return jnp.sum((z - batch["y"]) ** 2)

    loss, (d_kernel, d_bias) = jax.value_and_grad(unrolled, (0, 1))(kernel[...], bias[...])
    new = stepped.params["cell"]["linear"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        new["kernel"][...], kernel[...] - 0.1 * d_kernel, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(new["bias"][...], bias[...] - 0.1 * d_bias, rtol=1e-3, atol=1e-5)
    assert int(stepped.step) == 1 and int(stepped.skipped) == 0 and float(stepped.carry) == 1
    assert float(metrics["converged"]) == 1 and float(metrics["adjoint_converged"]) == 1
    assert float(metrics["adjoint_steps"]) >= 2


def test_a_non_finite_step_changes_nothing_but_the_count(batch):
    task, adam = Regression(), optax.adam(0.1)
    graph, state = new_state(task, adam, seed=0)
    train_step = jax.jit(make_step(task, graph, adam))
    bad, _ = train_step(state, {**batch, "y": batch["y"] * np.nan})
    assert int(bad.step) == 1 and int(bad.skipped) == 1
    for kept in ("params", "opt_state", "carry", "rest"):
        for a, b in zip(
            jax.tree.leaves(getattr(bad, kept)), jax.tree.leaves(getattr(state, kept)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    good, _ = train_step(bad, batch)
    assert int(good.skipped) == 1 and float(good.carry) == 1


def test_depth_trains_the_stack(batch):
    task, sgd = Regression(), optax.sgd(0.1)
    graph, state = new_state(task, sgd, seed=0)
    _, metrics = jax.jit(make_step(task, graph, sgd, Phase(depth=2)))(state, batch)
    assert float(metrics["forward_steps"]) == 2
    assert "adjoint_steps" not in metrics and "converged" not in metrics


def test_phases_limit_the_solve_and_choose_its_gradient(batch):
    task, sgd = Regression(), optax.sgd(0.1)
    graph, state = new_state(task, sgd, seed=0)
    phase = Phase(adjoint="jfb", fewer_steps=57)
    stepped, metrics = jax.jit(make_step(task, graph, sgd, phase))(state, batch)
    assert float(metrics["forward_steps"]) == 3 and float(metrics["converged"]) == 0
    exact, _ = jax.jit(make_step(task, graph, sgd))(state, batch)
    kernel = [x.params["cell"]["linear"]["kernel"][...] for x in (stepped, exact)]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 1e-3  # another gradient


def test_the_stack_has_a_depth_drawn_for_each_step():
    options = TrainOptions(stack_steps=60, stack_depth=2, stack_jitter=2, seed=5)
    drawn = [options.phase(step).depth for step in range(60)]
    assert set(drawn) == {2, 3, 4}
    assert drawn == [options.phase(step).depth for step in range(60)]  # a restart draws the same
    assert options.phase(60) == Phase()
    assert {TrainOptions(stack_steps=9).phase(step) for step in range(9)} == {Phase(depth=2)}
    with pytest.raises(ValueError, match="--stack-jitter"):
        TrainOptions(stack_jitter=-1).check()


def test_phases_follow_each_other():
    options = TrainOptions(stack_steps=2, cheap_steps=3, cheap_adjoint="jfb", step_jitter=4)
    phases = [options.phase(step) for step in range(200)]
    assert [p.depth for p in phases[:3]] == [2, 2, None]
    assert [p.adjoint for p in phases[:7]] == [None, None, "jfb", "jfb", "jfb", None, None]
    assert {p.fewer_steps for p in phases[:2]} == {0} and len(set(phases)) <= 1 + 3 + 3
    assert {p.fewer_steps for p in phases[5:]} == {0, 2, 4}
    with pytest.raises(ValueError, match="did you mean 'phantom'"):
        TrainOptions(cheap_adjoint="phantm").check()


def test_the_schedule_warms_up_peaks_and_decays():
    options = TrainOptions(steps=100, warmup=10, learning_rate=1.0, learning_rate_end=0.1)
    rate = learning_rate(options)
    values = [float(rate(step)) for step in range(101)]
    assert 0 < values[0] < 0.2 and values[10] == pytest.approx(1.0)
    assert values == sorted(values[:11]) + sorted(values[11:], reverse=True)
    assert values[100] == pytest.approx(0.1)


def test_the_rate_warms_up_again_when_the_solve_begins():
    options = dict(steps=100, warmup=10, learning_rate=1.0)
    plain = learning_rate(TrainOptions(**options))
    again = learning_rate(TrainOptions(**options, stack_steps=50))
    share = [float(again(step) / plain(step)) for step in range(100)]
    assert share[:50] == [1.0] * 50 and share[60:] == [1.0] * 40
    assert share[50] == pytest.approx(1 / 11) and share[50:60] == sorted(share[50:60])


def test_the_plateau_cuts_the_rate_where_held_out_loss_stands_still():
    options = TrainOptions(
        schedule="plateau", plateau_patience=1, plateau_factor=0.5, learning_rate_end=0.2
    )
    assert float(learning_rate(options)(900)) == pytest.approx(options.learning_rate)
    plateau = Plateau(options)
    state, scales = plateau.init(), []
    for loss in (3.0, 2.0, 2.1, 2.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        state = plateau.update(state, loss)
        scales.append(float(state.scale))
    assert scales == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2])
    assert Plateau(TrainOptions()).init() == () == Plateau(TrainOptions()).update((), 1.0)
    with pytest.raises(ValueError, match="--plateau-factor"):
        TrainOptions(plateau_factor=1.0).check()


def test_a_step_is_as_long_as_the_plateau_says(batch):
    task, sgd = Regression(), optax.sgd(0.1)
    plateau = Plateau(TrainOptions(schedule="plateau"))
    graph, state = new_state(task, sgd, 0, plateau.init())
    shorter = dataclasses.replace(state, plateau=state.plateau._replace(scale=jnp.float32(0.25)))
    train_step = jax.jit(make_step(task, graph, sgd))
    kernel = lambda s: s.params["cell"]["linear"]["kernel"][...]
    full, quarter = (kernel(train_step(s, batch)[0]) - kernel(s) for s in (state, shorter))
    np.testing.assert_allclose(quarter, 0.25 * full, atol=1e-7)


def test_plain_gradient_descent_decays_matrices():
    options = TrainOptions(optimiser="sgd", weight_decay=0.5, learning_rate=0.1, warmup=0, clip=9.0)
    transform = optimiser(dataclasses.replace(options, schedule="constant"))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = transform.update(params, transform.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 1.5, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-6)


def test_vectors_are_not_decayed():
    transform = optimiser(TrainOptions(weight_decay=0.5, learning_rate=0.1, warmup=0))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    assert (
        float(jnp.abs(updates["kernel"]).min()) > 0 and float(jnp.abs(updates["bias"]).max()) == 0
    )


def test_a_step_takes_arrays_in_any_layout_and_turns_them_once(batch):
    """A new or restored state, or that of another phase, may lie in memory otherwise."""
    task, sgd = Regression(), optax.sgd(0.1)
    graph, state = new_state(task, sgd, seed=0)
    step = Parallel().compile(make_step(task, graph, sgd), state)
    kernel = state.params["cell"]["linear"]["kernel"][...]
    usual = kernel.format
    columns = jax.device_put(kernel + 0, Format(Layout(major_to_minor=(1, 0)), usual.sharding))
    assert columns.format != usual
    other = jax.tree.map(lambda x: x + 0, state)
    other.params["cell"]["linear"]["kernel"][...] = columns
    (state, _), (other, _) = step(state, batch), step(other, batch)
    for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(got, want)
    batch = jax.device_put(batch)
    with jax.transfer_guard("disallow_explicit"):  # nothing is left to turn
        step(other, batch)
