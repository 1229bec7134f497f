"""Training what one likes: own hooks, optimiser, metrics; frozen parts, weights of another run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqjax.training import (
    CheckpointMismatch,
    Checkpoints,
    OptionError,
    Task,
    TrainOptions,
    fit,
    load_model,
    read_metrics,
)
from deqjax.training.frozen import named, spared


class Model(nnx.Module):
    def __init__(self, rngs, width=4):
        self.body = nnx.Linear(3, width, use_bias=False, rngs=rngs)  # the norm has one
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.body(x))))[:, 0]


class Regression(Task):
    """y = Σ x, from eight numbers a step."""

    def __init__(self, width=4):
        self.width = width

    def build(self, rngs):
        return Model(rngs, self.width)

    def batch(self, index, rows=slice(None)):
        x = np.random.default_rng(index).normal(size=(8, 3)).astype(np.float32)
        return (x[rows], x.sum(1)[rows])

    def loss(self, model, carry, batch, *, step, phase, probe):
        error = model(batch[0]) - batch[1]
        return jnp.mean(error**2), (carry, {"largest": jnp.abs(error).max()})

    def evaluate(self, model):
        x, y = self.batch(10_000)
        return {"valid_loss": jnp.mean((model(x) - y) ** 2), "within_one": np.float64(0.25)}


def options(folder, **changes):
    given = dict(steps=6, batch_size=8, log_every=2, eval_every=4, checkpoint_every=3, warmup=0)
    return TrainOptions(**(given | dict(runs=folder, schedule="constant") | changes))


class Widest:
    """A hook: the largest weight of the head, every other step; and which steps it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, at):
        self.seen.append((at.step, at.last))
        if at.due(2):
            at.row["widest"] = jnp.abs(at.state.params["head"]["kernel"][...]).max()
            assert at.model().head.kernel.shape == (4, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by an optimiser and with a hook of its own, and what it showed."""
    folder, hook = tmp_path_factory.mktemp("runs"), Widest()
    rule = optax.chain(optax.clip(1.0), optax.rmsprop(1e-2, momentum=0.9))
    given = options(folder, snapshot_every=4)
    run = fit(Regression(), given, name="a", optimiser=rule, hooks=(hook,))
    return run, hook, rule


def test_hooks_see_every_step_and_add_to_the_record(trained):
    run, hook, _ = trained
    assert hook.seen == [(step, step == 6) for step in range(1, 7)]
    rows = read_metrics(run.directory)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(row["widest"] > 0 and row["largest"] > 0 for row in rows)
    assert all("samples_per_second" in row and "tokens_per_second" not in row for row in rows)
    assert [row.get("within_one") for row in rows] == [None, 0.25, 0.25]
    assert json.loads((run.directory / "config.json").read_text())["batch_size"] == 8
    assert [path.name for path in (run.directory / "snapshots").iterdir()] == ["00000004.npz"]


def test_the_optimiser_is_the_callers(trained):
    run, _, rule = trained
    model = Model(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    state = rule.init(params)
    for step in range(6):
        x, y = Regression().batch(step)

        def loss(params, rest=rest, x=x, y=y):
            model = nnx.merge(graph, params, rest, copy=True)
            return jnp.mean((model(x) - y) ** 2), nnx.split(model, nnx.Param, ...)[2]

        grads, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for one, other in zip(
        jax.tree.leaves(params), jax.tree.leaves(nnx.state(run.model, nnx.Param)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


def test_the_progress_line_shows_what_evaluate_returns(tmp_path, capfd):
    fit(Regression(), options(tmp_path, steps=2), name="a")
    last = capfd.readouterr().err.splitlines()[-1]
    assert "within one" in last and "valid loss" in last and "largest" in last
    assert "ppl" not in last and "grad norm" not in last


@pytest.mark.parametrize(
    ("found", "error", "sentence"),
    [
        ({"errors": np.zeros(3)}, TypeError, r"'errors' .* shape \(3,\): a metric is one number"),
        ({"answer": "none"}, TypeError, r"'answer' of type str"),
        ({"loss": 1.0}, ValueError, r"'loss', which is a metric of training: call it valid_loss"),
    ],
)
def test_metrics_that_cannot_be_get_a_sentence(found, error, sentence, tmp_path):
    class Wrong(Regression):
        def evaluate(self, model):
            return found

    with pytest.raises(error, match=sentence):
        fit(Wrong(), options(tmp_path, steps=1), name="a")


def test_options_are_checked_before_anything_is_written(tmp_path):
    for changes, sentence in (
        (dict(steps=0), "--steps must be an integer >= 1"),
        (dict(freeze=("haed",)), r"--freeze haed is no part of the model: did you mean 'head'"),
        (
            dict(freeze=("x",)),
            r"x is no part of the model: its parts are body, head, norm",
        ),
        (dict(freeze=("*",)), "with every parameter frozen there is nothing to train"),
        (dict(init_from=tmp_path / "no" / "run"), r"no/run has no checkpoint yet"),
    ):
        with pytest.raises(OptionError, match=sentence):
            fit(Regression(), options(tmp_path, **changes), name="a")
    with pytest.raises(OptionError, match="a filter that no parameter of the model passes"):
        fit(Regression(), options(tmp_path), name="a", freeze=nnx.PathContains("tail"))
    assert not list(tmp_path.iterdir())


def leaves(state):
    return {"/".join(map(str, path)): np.asarray(x[...]) for path, x in nnx.to_flat_state(state)}


def test_a_run_begins_with_the_weights_of_another_and_leaves_the_frozen_ones(trained, tmp_path):
    source = trained[0]
    given = options(tmp_path, steps=3, init_from=source.directory, freeze=("body",))
    tuned = fit(Regression(), given, name="tuned", freeze=nnx.PathContains("norm"))
    before, after = (leaves(nnx.state(run.model, nnx.Param)) for run in (source, tuned))
    same = {name for name in before if (before[name] == after[name]).all()}
    assert same == {"body/kernel", "norm/scale", "norm/bias"}
    with Checkpoints(tmp_path / "tuned" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [0, 3]
    # What it began with is its own now, and where it came from part of what it is.
    with pytest.raises(OptionError, match="init_from was"):
        fit(Regression(), options(tmp_path, steps=3, freeze=("body",)), name="tuned")
    with pytest.raises(CheckpointMismatch, match=r"\[3,4\] there and float32\[3,5\]"):
        fit(Regression(width=5), options(tmp_path, init_from=source.directory), name="wider")
    assert not (tmp_path / "wider").exists()


def test_running_statistics_come_along(trained, tmp_path):
    source = trained[0]
    given = options(tmp_path, steps=1, init_from=source.directory)
    tuned = fit(Regression(), given, name="tuned", optimiser=optax.set_to_zero())
    one, other = (leaves(nnx.state(run.model, nnx.BatchStat)) for run in (source, tuned))
    assert all(np.abs(one[k] - other[k]).max() < 0.1 for k in one)  # moved by one batch
    fresh = leaves(nnx.state(Model(nnx.Rngs(0)), nnx.BatchStat))
    assert any(np.abs(one[k] - fresh[k]).max() > 0.02 for k in one)


def test_a_model_is_loaded_whatever_its_optimiser_was(trained):
    run = trained[0]
    model = load_model(Regression(), options(run.directory.parent), run.directory)
    assert Regression().evaluate(model)["valid_loss"] == run.result["valid_loss"]


def test_an_optimiser_keeps_nothing_for_frozen_parameters():
    params = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    moments = lambda rule: sum(x.size for x in jax.tree.leaves(rule.init(params)))
    adam = optax.adam(1e-3)
    assert moments(spared(adam, named(("body",)))) == moments(adam) - 2 * 3 * 4
    assert spared(adam, named(())) is adam


def test_an_optimiser_may_ask_for_the_loss(tmp_path):
    rule = optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau(patience=1))
    assert fit(Regression(), options(tmp_path, steps=1), name="a", optimiser=rule).result["steps"]
