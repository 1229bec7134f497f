"""`on_failure`: what is heard of a failed solve, of each kind and under each transform."""

import importlib.util
import inspect
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import export
from jax.experimental.compilation_cache import compilation_cache

import deqjax
from deqjax import _failure
from deqjax._failure import VARIABLE
from deqjax.nn import DEQ, linen

from . import failure_programs
from .failure_programs import affine, finish, start

SHORT = deqjax.Picard(max_steps=3)


def forward(w, **options):
    """z* = 1/(1 − w), which three steps from zero reach if w is small."""
    return deqjax.fixed_point(
        affine, jnp.zeros_like(w), w, solver=SHORT, rtol=1e-3, adjoint="jfb", **options
    ).z.sum()


def adjoint(w, **options):
    """The same, solved; its adjoint takes three steps from v."""
    return deqjax.fixed_point(
        affine, jnp.zeros_like(w), w, solver=deqjax.Anderson(memory=2), rtol=1e-3,
        adjoint_solver=SHORT, **options,
    ).z.sum()  # fmt: skip


def both_modes(w, **options):
    return adjoint(w, forward_mode=True, **options)


def on_its_own(loss):
    """With `loss` of each entry of w."""
    return lambda w, **options: jax.vmap(lambda w: loss(w, **options))(w)


FAILS, SOLVED = jnp.float32(0.9), jnp.float32(1e-4)
BOTH = jnp.stack([SOLVED, FAILS])

# name: (function of w, where, the kinds of solve that fail)
CASES = {
    "forward": (forward, FAILS, {"forward"}),
    "grad": (jax.grad(forward), FAILS, {"forward"}),
    "adjoint": (jax.grad(adjoint), FAILS, {"adjoint"}),
    "grad of grad": (jax.grad(jax.grad(adjoint)), FAILS, {"adjoint"}),
    "jvp": (lambda w, **o: jax.jvp(lambda w: both_modes(w, **o), (w,), (w,)), FAILS, {"tangent"}),
    "grad in both modes": (jax.grad(both_modes), FAILS, {"adjoint"}),
    "hessian": (jax.hessian(both_modes), FAILS, {"adjoint", "tangent"}),
    "vmap": (on_its_own(forward), BOTH, {"forward"}),
    "vmap of grad": (on_its_own(jax.grad(adjoint)), BOTH, {"adjoint"}),
    "unrolled": (
        lambda w, **o: deqjax.fixed_point(
            affine, w, w, solver=SHORT, adjoint="unrolled", rtol=1e-3, **o
        ).z,
        FAILS,
        {"forward"},
    ),
    "root": (
        lambda w, **o: deqjax.root_find(lambda z, w: 1 - (1 - w) * z, w, w, solver=SHORT, **o).z,
        FAILS,
        {"forward"},
    ),
}  # fmt: skip


def cases(*quick):
    """All of them; those that take no other way than a quick one are slow tests."""
    slow = [pytest.param(c, marks=pytest.mark.slow) for c in CASES if c not in quick]
    return pytest.mark.parametrize("case", [*quick, *slow])


@pytest.fixture(autouse=True)
def from_the_start(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    _failure._told.clear()


def messages(function, *args) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", deqjax.SolveWarning)
        jax.block_until_ready(function(*args))
        jax.effects_barrier()
    assert all(issubclass(w.category, deqjax.SolveWarning) for w in caught), caught
    return [str(w.message) for w in caught]


def kinds(function, *args) -> set[str]:
    said = messages(function, *args)
    found = {re.match(r"deqjax: the (\w+) solve of the call at ", m)[1] for m in said}
    assert len(found) == len(said)  # once each
    return found


def with_policy(function, policy):
    return lambda w: function(w, on_failure=policy)


# ------------------------------------------------------------------------------------- eager


@cases("forward", "adjoint", "jvp", "vmap", "grad in both modes")
def test_what_runs_at_once_warns(case):
    function, w, expected = CASES[case]
    assert kinds(function, w) == expected


@pytest.mark.parametrize("case", ["forward", "jvp"])
def test_it_can_be_silenced(case):
    function, w, _ = CASES[case]
    assert kinds(with_policy(function, "ignore"), w) == set()


def test_the_message_has_sentence_numbers_and_line():
    w = jnp.array([1e-3, 0.5, 0.9], jnp.float32)
    line = inspect.currentframe().f_lineno + 2
    (said,) = messages(
        lambda: deqjax.fixed_point(affine, w, w, solver=SHORT, rtol=1e-3, batch_axis=0)
    )
    assert f"forward solve of the call at {__file__}:{line} failed for 2 of 3 samples" in said
    residual = 0.9**3 * (1 - (1 - 0.9) * 0.9) / (1 / (1 - 0.9))  # of the worst, roughly
    shown = float(re.search(r"relative residual (\S+), 3 steps", said)[1])
    assert residual / 3 < shown < 3 * residual
    assert "(max_steps; " in said and said.endswith(deqjax.Status.MAX_STEPS.message)


def test_an_eager_solve_raises_itself():
    for function, name in (forward, "forward"), (jax.grad(adjoint), "adjoint"):
        with pytest.raises(deqjax.SolveError, match=f"the {name} solve of the call"):
            function(FAILS, on_failure="raise")
    forward(SOLVED, on_failure="raise")


def test_without_jit_there_is_no_difference():
    with jax.disable_jit():
        assert kinds(forward, FAILS) == {"forward"}


# ------------------------------------------------------------------------------------- staged


@cases("forward", "adjoint", "vmap of grad", "hessian")
def test_a_compiled_program_warns_if_it_is_asked_to(case):
    function, w, expected = CASES[case]
    assert kinds(jax.jit(with_policy(function, "warn")), w) == expected


def test_scan_and_checkpoint():
    for policy, expected in ("warn", {"adjoint"}), (None, set()):
        gradient = jax.grad(jax.checkpoint(with_policy(adjoint, policy)))
        assert kinds(lambda w, g=gradient: jax.lax.map(g, w), BOTH) == expected


@cases("forward", "adjoint", "hessian")
def test_the_default_puts_nothing_into_a_program(case):
    function, w, _ = CASES[case]
    program = {
        policy: jax.jit(with_policy(function, policy)).lower(w).as_text()
        for policy in (None, "ignore", "warn")
    }
    assert program[None] == program["ignore"]
    assert program[None].count("callback") == 0 < program["warn"].count("callback")


def test_a_compiled_program_raises_from_the_runtime():
    solve = jax.jit(with_policy(forward, "raise"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="the forward solve of the call at"):
        jax.block_until_ready(solve(FAILS))
        jax.effects_barrier()


# ------------------------------------------------------------------------------------ policies


@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nan_marks_the_samples_that_failed_and_no_other_bit(compiled):
    w = jnp.array([1e-4, 0.9, -0.0, jnp.nan, 4e-3], jnp.float32)
    failed = np.array([False, True, False, True, False])
    options = dict(solver=SHORT, rtol=1e-3, batch_axis=0)

    def solve(w, policy):
        return deqjax.fixed_point(affine, jnp.zeros_like(w), w, **options, on_failure=policy).z

    jit = jax.jit if compiled else lambda f, **_: f
    solve = jit(solve, static_argnames="policy")
    gradient = jit(jax.grad(lambda w, p: solve(w, p).sum()), static_argnums=1)
    for function in solve, gradient:
        plain, marked = (np.asarray(function(w, policy)) for policy in ("ignore", "nan"))
        assert np.isnan(marked[failed]).all()
        np.testing.assert_array_equal(*(x[~failed].view(np.uint32) for x in (marked, plain)))


@pytest.mark.parametrize(
    "case", ["adjoint", "jvp", pytest.param("hessian", marks=pytest.mark.slow)]
)
def test_nan_marks_what_is_derived(case):
    function, w, _ = CASES[case]
    function = with_policy(function, "nan")
    *_, derived = jax.tree.leaves(function(w))
    assert jnp.isnan(derived)
    *_, derived = jax.tree.leaves(function(SOLVED))
    assert jnp.isfinite(derived)


def test_once_for_each_line_and_kind():
    def here(w):
        return forward(w)

    assert len(messages(here, FAILS)) == 1 and messages(here, FAILS) == []
    assert kinds(jax.grad(adjoint), FAILS) == {"adjoint"}
    assert kinds(jax.jit(with_policy(both_modes, "warn")), FAILS) == set()
    with warnings.catch_warnings():
        warnings.simplefilter("error", deqjax.SolveWarning)
        for _ in range(2):  # an error is no less of one the second time
            with pytest.raises(deqjax.SolveWarning):
                deqjax.fixed_point(affine, FAILS, FAILS, solver=SHORT)


def test_keyword_before_context_before_environment(monkeypatch):
    solve = jax.jit(forward)
    assert kinds(solve, FAILS) == set()
    monkeypatch.setenv(VARIABLE, "nan")
    with deqjax.checking_solves():  # a function that was compiled outside, too
        assert kinds(solve, FAILS) == {"forward"}
        with deqjax.checking_solves("ignore"):
            assert kinds(forward, FAILS) == set()
        assert jnp.isnan(forward(FAILS, on_failure="nan"))
    assert jnp.isfinite(solve(FAILS))  # it was traced before the variable was set
    assert jnp.isnan(forward(FAILS))


def test_a_backward_pass_follows_the_policy_of_its_call():
    with deqjax.checking_solves("raise"):
        _, pull = jax.vjp(adjoint, FAILS)
    with pytest.raises(deqjax.SolveError, match="adjoint solve"):
        pull(jnp.ones_like(FAILS))


def test_what_was_asked_for_is_no_failure():
    chosen = [dict(adjoint=a) for a in ("jfb", "phantom")]
    chosen.append(dict(adjoint="shine", solver="broyden"))
    chosen.append(dict(adjoint=deqjax.Implicit(max_gain=1.5)))
    for options in chosen:

        def loss(w, options=options):
            return deqjax.fixed_point(affine, w, w, rtol=1e-3, **options).z

        assert kinds(jax.grad(loss), FAILS) == set()
    assert kinds(lambda w: deqjax.fixed_point(affine, w, w, max_steps=0).z, FAILS) == set()
    z = deqjax.fixed_point(affine, FAILS, FAILS, max_steps=0, on_failure="nan").z
    assert jnp.isfinite(z)


def test_wrong_policies_get_a_sentence(monkeypatch):
    with pytest.raises(ValueError, match=r"on_failure='warning' is not .* did you mean 'warn'"):
        forward(SOLVED, on_failure="warning")
    with pytest.raises(TypeError, match=r"on_failure must be one of warn, .*; got bool"):
        deqjax.root_find(affine, SOLVED, SOLVED, on_failure=True)
    with pytest.raises(ValueError, match="did you mean 'raise'"):
        deqjax.checking_solves("raises")
    monkeypatch.setenv(VARIABLE, "nans")
    with pytest.raises(ValueError, match=r"DEQJAX_ON_FAILURE='nans' .* did you mean 'nan'"):
        forward(SOLVED)


# ----------------------------------------------------- what a callback in the program would cost


def test_the_default_can_be_exported():
    gradient = jax.jit(jax.grad(adjoint))
    exported = export.export(gradient)(FAILS)
    if importlib.util.find_spec("flatbuffers"):  # which JAX asks for to write it down
        exported = export.deserialize(exported.serialize())
    np.testing.assert_allclose(exported.call(FAILS), gradient(FAILS), rtol=1e-6)
    with pytest.raises(NotImplementedError, match="callback"):
        export.export(jax.jit(with_policy(forward, "warn")))(FAILS)


def test_the_default_is_kept_by_the_compilation_cache(tmp_path):
    hits = []
    jax.monitoring.register_event_listener(
        lambda name, **_: hits.append(name.endswith("/cache_hits"))
    )

    def files() -> list[str]:
        def kept_by_default(w):  # a new function each time, which JAX knows nothing about
            return forward(w)

        jax.block_until_ready(jax.jit(kept_by_default)(SOLVED))
        return [p.name for p in tmp_path.glob("jit_kept_by_default-*-cache")]

    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        (written,) = files()
        hits.clear()
        assert files() == [written] and any(hits)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_solve_under_a_cond_can_be_mapped():
    def either(w):
        return jax.lax.cond(w > 0.5, jax.grad(adjoint), lambda w: w, w)

    assert kinds(jax.jit(jax.vmap(either)), BOTH) == set()


# ------------------------------------------------------------------------------ many devices


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", pytest.param("Explicit", marks=pytest.mark.slow)])
def test_on_four_devices(axes, on_devices):
    on_devices(4, failure_programs.__file__, f"devices {axes}")


@pytest.mark.slow
def test_two_processes_hear_nothing_and_have_the_answer(tmp_path):
    said = finish(start(Path(failure_programs.__file__), 2))
    for text in said:
        assert "deqjax:" not in text and text.endswith("z 10.0\n"), said


# ------------------------------------------------------------------------------------ modules


def test_modules_take_the_policy():
    class Cell(nnx.Module):
        def __call__(self, z, x):
            return 0.9 * z + x

    class LinenCell(nn.Module):
        def __call__(self, z, x):
            return 0.9 * z + x

    x = jnp.ones((1, 2), jnp.float32)
    for policy, marked in ("nan", True), ("ignore", False):
        options = dict(solver=SHORT, on_failure=policy)
        for z in DEQ(Cell(), **options)(x).z, linen.DEQ(LinenCell(), **options).apply({}, x).z:
            assert jnp.isnan(z).all() == marked
    for module, cell in (DEQ, Cell()), (linen.DEQ, LinenCell()):
        with pytest.raises(ValueError, match="did you mean 'nan'"):
            module(cell, on_failure="nans")
