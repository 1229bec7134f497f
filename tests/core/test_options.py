"""Wrong options and wrong cells: each gets one sentence with the wrong value and a right one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.solvers.base import Step

HALF = lambda z: 0.5 * z + 1.0


def call(f=HALF, z0=None, *args, **options):
    return deqjax.fixed_point(f, jnp.zeros(4) if z0 is None else z0, *args, **options)


def refused(kind, *words, f=HALF, z0=None, args=(), **options):
    with pytest.raises(kind) as error:
        call(f, z0, *args, **options)
    text = str(error.value)
    for word in words:
        assert word in text, text
    assert "\n" not in text and 20 < len(text) < 400
    # Raised by the check, and not by an accident further down that got a friendly face.
    assert error.value.__cause__ is None
    return text


# ------------------------------------------------------------------------------- keywords


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("tol", "rtol"),
        ("max_step", "max_steps"),
        ("maxiter", None),
        ("sovler", "solver"),
        ("adjoint_solve", "adjoint_solver"),
        ("batch_axes", "batch_axis"),
        ("probe", "adjoint_probe"),
    ],
)
@pytest.mark.parametrize("function", ["fixed_point", "root_find"])
def test_unknown_keywords_name_the_close_match(function, given, meant):
    with pytest.raises(TypeError) as error:
        getattr(deqjax, function)(HALF, jnp.zeros(4), **{given: 1})
    text = str(error.value)
    assert f"{function}() has no keyword {given!r}" in text
    if meant:
        assert f"did you mean {meant!r}?" in text
    assert "batch_axis" in text and "max_steps" in text  # all of them are listed


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        ("solver", "andersen", ("'andersen'", "did you mean 'anderson'?")),
        ("solver", "Broyden", ("'Broyden'", "did you mean 'broyden'?")),
        ("solver", "xyz", ("'xyz'", "choose from", "anderson", "broyden", "picard")),
        ("adjoint", "implict", ("'implict'", "did you mean 'implicit'?")),
        ("adjoint", "exact", ("'exact'", "implicit")),
        ("adjoint_solver", "piccard", ("adjoint_solver='piccard'", "did you mean 'picard'?")),
    ],
)
def test_unknown_names(option, given, words):
    refused(ValueError, *words, **{option: given})


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        ("solver", deqjax.Anderson, ("write Anderson()",)),
        ("adjoint", deqjax.Phantom, ("write Phantom()",)),
        ("adjoint_solver", deqjax.Broyden, ("adjoint_solver=", "write Broyden()")),
        ("solver", 3, ("solver=", "int", "anderson")),
        ("solver", None, ("solver=", "NoneType")),
        ("adjoint", 3, ("adjoint=", "int", "Implicit")),
        ("adjoint", deqjax.Picard(), ("adjoint=", "Picard")),
        ("solver", deqjax.JFB(), ("solver=", "JFB")),
    ],
)
def test_classes_and_wrong_objects(option, given, words):
    refused(TypeError, *words, **{option: given})


# ------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_tolerances_are_finite_and_not_negative(name, value):
    refused(ValueError, name, ">= 0", repr(value), **{name: value})


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", ["1e-3x", [1.0, 2.0]])
def test_tolerances_are_numbers(name, value):
    refused(TypeError, name, "number", type(value).__name__, **{name: value})


def test_traced_tolerances_are_refused_with_the_reason():
    with pytest.raises(TypeError, match=r"rtol must be a Python number.*cannot be traced"):
        jax.jit(lambda tol: call(rtol=tol).z)(1e-3)


def test_traced_max_steps_are_refused():
    with pytest.raises((TypeError, ValueError), match="max_steps must be an integer") as error:
        jax.jit(lambda k: call(max_steps=k).z)(3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "kind"), [(-1, ValueError), (2.5, TypeError), ("9", TypeError), (True, ValueError)]
)
def test_max_steps_is_a_count(value, kind):
    refused(kind, "max_steps must be an integer >= 0", repr(value), max_steps=value)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (deqjax.Picard, dict(damping=0.0), ("damping", "(0, 1]", "0.0")),
        (deqjax.Picard, dict(damping=1.5), ("damping", "(0, 1]", "1.5")),
        (deqjax.Picard, dict(damping="a"), ("damping", "'a'")),
        (deqjax.Anderson, dict(memory=-1), ("memory", ">= 0", "-1")),
        (deqjax.Anderson, dict(memory=2.0), ("memory", "integer", "2.0")),
        (deqjax.Anderson, dict(mixing=0.0), ("mixing", "0.0")),
        (deqjax.Anderson, dict(mixing=float("nan")), ("mixing", "nan")),
        (deqjax.Anderson, dict(ridge=-1.0), ("ridge", "-1.0")),
        (deqjax.Anderson, dict(history_dtype="int8"), ("history_dtype", "int8", "bfloat16")),
        (deqjax.Broyden, dict(history_dtype="bf16"), ("history_dtype", "'bf16'", "bfloat16")),
        (deqjax.Broyden, dict(memory=0), ("memory", ">= 1", "0")),
        (deqjax.Broyden, dict(rtol=-1.0), ("rtol", "-1.0")),
        (deqjax.Phantom, dict(steps=0), ("steps", ">= 1", "0")),
        (deqjax.Phantom, dict(damping=2), ("damping", "(0, 1]", "2")),
        (deqjax.JFB, dict(steps=2), ("JFB", "Phantom")),
        (deqjax.Unrolled, dict(checkpoint="half"), ("checkpoint", "'half'", "'sqrt'")),
        (deqjax.Implicit, dict(solver="broiden"), ("'broiden'", "'broyden'")),
        (deqjax.Implicit, dict(solver=deqjax.Picard), ("write Picard()",)),
    ],
)
def test_options_of_solvers_and_adjoints_are_checked_when_made(make, options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        make(**options)
    for word in words:
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [deqjax.Picard, deqjax.Anderson, deqjax.Broyden, deqjax.Phantom])
def test_options_are_keywords_and_frozen(make):
    with pytest.raises(TypeError):
        make(0.5)
    with pytest.raises(TypeError):
        make(momery=3)
    with pytest.raises(AttributeError):
        make().rtol = 1.0
    assert hash(make()) == hash(make()) and make() == make()


def test_numpy_numbers_are_numbers():
    sol = call(rtol=np.float32(1e-3), max_steps=np.int64(50), solver=deqjax.Anderson(memory=1))
    assert bool(sol.stats.converged)


def test_keywords_override_the_solvers_own():
    slow = deqjax.Picard(rtol=1e-12, max_steps=60)
    own, looser, shorter = (
        call(solver=slow),
        call(solver=slow, rtol=1e-2),
        call(solver=slow, max_steps=4),
    )
    assert int(shorter.stats.steps) == 4 < int(looser.stats.steps) < int(own.stats.steps)
    assert slow == deqjax.Picard(rtol=1e-12, max_steps=60)


# ------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("kind", "f", "words"),
    [
        (ValueError, lambda z: z[:-1], ("shape", "(4,)", "(3,)")),
        (ValueError, lambda z: z[None], ("shape", "(4,)", "(1, 4)")),
        (TypeError, lambda z: (z, z), ("structure",)),
        (TypeError, lambda z: None, ("structure",)),
        (TypeError, lambda z: z.astype(jnp.float32), ("dtype", "float64", "float32")),
        (TypeError, lambda z: z + 1j, ("dtype", "float64", "complex128")),
        (TypeError, lambda z: z.astype(int), ("dtype", "int")),
        (TypeError, 7, ("callable", "int")),
    ],
)
def test_wrong_cells(kind, f, words):
    refused(kind, *words, f=f)


@pytest.mark.parametrize(
    ("g", "words"), [(lambda z: z[:-1], ("shape",)), (lambda z: [z], ("structure",))]
)
def test_wrong_cells_of_root_find(g, words):
    with pytest.raises((TypeError, ValueError)) as error:
        deqjax.root_find(g, jnp.zeros(4))
    assert all(word in str(error.value) for word in words)
    with pytest.raises(TypeError, match="g must be callable"):
        deqjax.root_find(3, jnp.zeros(4))


def test_the_wrong_leaf_is_named():
    z0 = {"a": jnp.zeros(2), "b": [jnp.zeros(3)]}
    f = lambda z: {"a": z["a"], "b": [z["b"][0][:2]]}
    refused(ValueError, "['b'][0]", "(3,)", "(2,)", f=f, z0=z0)
    refused(TypeError, "['b'][0]", "int", f=f, z0={"a": jnp.zeros(2), "b": [jnp.zeros(3, int)]})


def test_wrong_states():
    refused(TypeError, "int", "floating point", z0=jnp.zeros(3, int))
    refused(TypeError, "bool", "floating point", z0=jnp.zeros(3, bool))
    refused(TypeError, "str", "floating point", z0="zeros")
    refused(TypeError, "key", "floating point", z0=jax.random.key(0))
    refused(ValueError, "z0", "no arrays", z0={})
    refused(ValueError, "z0", "no arrays", z0=(None, []))


@pytest.mark.parametrize("axis", [1, -2, 7])
def test_batch_axis_out_of_range(axis):
    refused(ValueError, f"batch_axis={axis}", "(4,)", batch_axis=axis)


def test_wrong_batch_axes():
    refused(TypeError, "batch_axis", "True", batch_axis=True)
    refused(TypeError, "batch_axis", "1.0", batch_axis=1.0)
    refused(TypeError, "batch_axis", "(0, 1)", batch_axis=(0, 1))
    f = lambda z: z
    refused(
        ValueError, "[2, 3]", "batch_axis=0", f=f, z0=(jnp.zeros(2), jnp.zeros(3)), batch_axis=0
    )
    refused(ValueError, "batch_axis=0", "()", f=f, z0=(jnp.zeros(2), jnp.zeros(())), batch_axis=0)


# ------------------------------------------------------------------------------- combinations


def test_combinations_that_mean_nothing():
    for adjoint in ("jfb", "phantom", "unrolled"):
        refused(
            ValueError,
            "adjoint_solver",
            adjoint,
            "implicit",
            adjoint=adjoint,
            adjoint_solver="picard",
        )
    refused(
        ValueError,
        "twice",
        "Implicit(solver=...)",
        "adjoint_solver",
        adjoint=deqjax.Implicit(solver="picard"),
        adjoint_solver="picard",
    )


def test_probes_of_the_wrong_shape_or_kind():
    probe = deqjax.adjoint_probe
    refused(ValueError, "adjoint_probe(batch=None)", adjoint_probe=probe(4))
    refused(ValueError, "adjoint_probe(batch=4)", batch_axis=0, adjoint_probe=probe())
    refused(ValueError, "adjoint_probe(batch=4)", batch_axis=0, adjoint_probe=probe(3))
    refused(ValueError, "adjoint_probe", adjoint_probe=jnp.zeros(()))
    refused(ValueError, "adjoint_probe", "unrolled", adjoint="unrolled", adjoint_probe=probe())


def test_resume_takes_the_state_of_a_solution():
    sol = call(solver="picard")
    refused(TypeError, "resume", ".state", "Solution", resume=sol)
    refused(TypeError, "resume", ".state", resume=3)


@pytest.mark.parametrize(
    "other",
    [
        dict(solver="picard"),
        dict(solver="broyden"),
        dict(solver=deqjax.Anderson(memory=2)),
        dict(z0=jnp.zeros(5)),
        dict(batch_axis=0),
    ],
    ids=["no history", "another solver", "another memory", "another shape", "a batch"],
)
def test_resume_refuses_the_state_of_an_unlike_solve(other):
    """The wrong state must get a sentence, not a shape error from inside a loop."""
    state = call(**({"solver": "anderson", "max_steps": 10} | other)).state
    refused((TypeError, ValueError), "resume", solver="anderson", max_steps=10, resume=state)


def test_python_scalars_are_states_too():
    sol = deqjax.fixed_point(lambda z: 0.5 * z + 1.0, 0.0, solver="picard", rtol=1e-10)
    assert sol.z.shape == () and sol.z.dtype == jnp.float64
    np.testing.assert_allclose(sol.z, 2.0, rtol=1e-9)


# ------------------------------------------------------------------------------- small inputs


def test_scalars_of_arrays_are_numbers_among_options():
    """A solver whose options were NumPy's or JAX's can be hashed, as a static argument must be."""
    solver = deqjax.Anderson(rtol=jnp.array(1e-4), memory=np.int64(3), mixing=np.float32(0.5))
    assert (solver.memory, solver.mixing) == (3, 0.5) and type(solver.memory) is int
    assert abs(solver.rtol - 1e-4) < 1e-9 and isinstance(solver.rtol, float)
    run = jax.jit(lambda s, z: deqjax.fixed_point(jnp.cos, z, solver=s).z, static_argnums=0)
    assert jnp.isfinite(run(solver, jnp.zeros(3))).all()


def test_a_traced_option_is_refused_with_the_reason():
    with pytest.raises(TypeError, match="mixing must be a Python number, and is a traced value"):
        jax.jit(lambda b: deqjax.Anderson(mixing=b).mixing)(0.5)


@pytest.mark.parametrize("kind", [deqjax.Anderson, deqjax.adjoints.Phantom])
def test_a_misspelt_option_of_an_object_names_the_right_one(kind):
    wrong, right = ("memry", "memory") if kind is deqjax.Anderson else ("stps", "steps")
    with pytest.raises(TypeError, match=f"no keyword '{wrong}'; did you mean '{right}'"):
        kind(**{wrong: 3})


def test_any_integer_is_an_axis():
    f = lambda z, x: jnp.cos(z) * x
    sol = deqjax.fixed_point(f, jnp.zeros((2, 3)), jnp.ones((2, 3)), batch_axis=np.int64(0))
    assert sol.stats.steps.shape == (2,)


def test_what_is_no_array_among_the_arguments():
    """A function, as the activation in an Equinox module, is passed on; a string is refused."""
    f = lambda z, p: 0.3 * p["act"](z) + p["x"]
    given = {"act": jnp.cos, "x": 1.0}
    sol = deqjax.fixed_point(f, jnp.zeros(3), given)
    assert bool(sol.stats.converged)
    x_bar = jax.grad(lambda x: deqjax.fixed_point(f, jnp.zeros(()), dict(given, x=x)).z)(1.0)
    z = deqjax.fixed_point(f, jnp.zeros(()), given).z
    np.testing.assert_allclose(x_bar, 1 / (1 + 0.3 * jnp.sin(z)), rtol=1e-4)
    with pytest.raises(TypeError, match=r"args\[0\]\['mode'\] is 'cos', a str"):
        deqjax.fixed_point(lambda z, p: z, jnp.zeros(3), {"mode": "cos"})


def test_a_state_too_narrow_to_have_residuals():
    with pytest.raises(TypeError, match=r"float8_e4m3fn.*bfloat16 or wider"):
        deqjax.fixed_point(lambda z: z, jnp.zeros(3, jnp.float8_e4m3fn))


def test_an_error_of_f_says_with_what_it_was_called():
    with pytest.raises(TypeError) as wrong:
        deqjax.fixed_point(lambda z: jnp.ones((4, 4)) @ z, jnp.zeros(3))
    assert any("f raised this" in note and "[3]" in note for note in wrong.value.__notes__)


# ------------------------------------------------------------------------------- one's own


class Broken(deqjax.solvers.Solver):
    def init(self, point, max_steps):
        return jnp.zeros(1)

    def step(self, f, point, state, k, active):
        return point.fz


class Forgetful(Broken):
    def step(self, f, point, state, k, active):
        return Step(f.at(point.fz), ())


class Narrow(Broken):
    def step(self, f, point, state, k, active):
        new = f.at(point.fz)
        return Step(new._replace(z=new.z[:, :1]), state)


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (Broken(), r"Broken.step must return Step\(point, state\)"),
        (Forgetful(), "Forgetful.step must leave its state in the form that it got"),
        (Narrow(), "Narrow.step must leave the point in the form that it got"),
    ],
)
def test_a_solver_of_ones_own_that_breaks_its_contract(solver, said):
    with pytest.raises(TypeError, match=said):
        deqjax.fixed_point(jnp.cos, jnp.zeros(3), solver=solver)


class Bare(deqjax.adjoints.Adjoint):
    def cotangent(self, pull, v, solve, end):
        return v


def test_an_adjoint_of_ones_own_that_breaks_its_contract():
    loss = lambda w: deqjax.fixed_point(lambda z: w * jnp.cos(z), jnp.zeros(3), adjoint=Bare()).z
    with pytest.raises(TypeError, match=r"Bare.cotangent must return \(u, stats\)"):
        jax.grad(lambda w: loss(w).sum())(0.5)
