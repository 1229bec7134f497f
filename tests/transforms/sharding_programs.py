"""Programs for four devices, run by `test_sharding` in a process of their own.

    python sharding_programs.py NAME ...

XLA fixes the number of host devices when it starts, hence the process.
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import deqjax

DEVICES, BATCH, N = 4, 8, 6
SOLVERS = {
    "picard": deqjax.Picard(),
    "anderson": deqjax.Anderson(memory=3),
    "broyden": deqjax.Broyden(memory=4),
}
# With loops inside a step, and with batches inside a solve.
OTHERS = {
    "newton_krylov": deqjax.NewtonKrylov(memory=6),
    "line_search": deqjax.Broyden(memory=4, line_search=True),
    "compacted": deqjax.Compacted(deqjax.Picard(), stages=1),
}


def data():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(N, N))
    w *= 0.9 / np.linalg.norm(w, 2)
    x = rng.normal(size=(BATCH, N)) * np.geomspace(0.01, 30.0, BATCH)[:, None]
    return {"w": w, "b": rng.normal(size=N)}, x


def cell(z, theta, x):
    return jnp.tanh(z @ theta["w"].T + theta["b"] + x)


def solve(theta, x, solver="anderson", **options):
    options = dict(batch_axis=0, rtol=1e-10, max_steps=200) | options
    solver = (SOLVERS | OTHERS)[solver]
    return deqjax.fixed_point(cell, jnp.zeros_like(x), theta, x, solver=solver, **options)


def loss(theta, x, **options):
    sol = solve(theta, x, **options)
    return jnp.sum(jnp.sin(sol.z) * jnp.arange(1.0, N + 1)), sol


def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def assert_close(got, want, tolerance=1e-8):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


def single(theta, x, **options):
    return jax.jit(jax.value_and_grad(lambda t, x: loss(t, x, **options)[0], (0, 1)))(theta, x)


def sharded_value_and_grad(fixed_zeros=False, **options):
    """The data-parallel step: parameters replicated, x sharded, one psum of the loss."""

    def total(theta, x):
        def local(theta, x):
            if fixed_zeros:
                # A start that varies over no mesh axis, though x does.
                z0 = jnp.zeros((BATCH // DEVICES, N))
                sol = deqjax.fixed_point(
                    cell, z0, theta, x, solver=SOLVERS["anderson"], batch_axis=0, **options
                )
                value = jnp.sum(jnp.sin(sol.z) * jnp.arange(1.0, N + 1))
            else:
                value, _ = loss(theta, x, **options)
            return jax.lax.psum(value, "data")

        return jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())(theta, x)

    return jax.jit(jax.value_and_grad(total, (0, 1)))


def grad_inside(**options):
    """value_and_grad inside shard_map, gradients reduced once by hand."""

    def local(theta, x):
        value, grads = jax.value_and_grad(lambda t, x: loss(t, x, **options)[0], (0, 1))(
            jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), theta), x
        )
        return jax.lax.psum(value, "data"), (jax.lax.psum(grads[0], "data"), grads[1])

    return jax.jit(
        jax.shard_map(
            local,
            mesh=mesh(),
            in_specs=(P(), P("data")),
            out_specs=(P(), (P(), P("data"))),
        )
    )


# ------------------------------------------------------------------------------- shard_map


def shard_map_values():
    """Values, statistics and traces, for every solver, from a sharded and from an unvarying z0."""
    theta, x = data()
    for solver in SOLVERS:
        local = lambda theta, x, solver=solver: (
            lambda sol: (sol.z, sol.stats.steps, sol.stats.status)
        )(solve(theta, x, solver))
        mapped = jax.jit(
            jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data"))
        )(theta, x)
        alone = jax.jit(lambda theta, x, solver=solver: solve(theta, x, solver))(theta, x)
        assert np.unique(alone.stats.steps).size > 2
        assert_close(mapped, (alone.z, alone.stats.steps, alone.stats.status), 1e-9)


def shard_map_stability():
    """Each device knows the stability of its own samples."""
    theta, x = data()
    local = lambda theta, x: solve(theta, x, "picard", stability=8).stats.stability
    mapped = jax.jit(
        jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data"))
    )(theta, x)
    # It begins with a residual, whose direction is known to a few digits.
    assert_close(mapped, jax.jit(local)(theta, x), 1e-4)


def shard_map_gradients():
    theta, x = data()
    want = single(theta, x)
    assert_close(sharded_value_and_grad()(theta, x), want)
    assert_close(
        sharded_value_and_grad(fixed_zeros=True, rtol=1e-10, max_steps=200)(theta, x), want
    )
    assert_close(sharded_value_and_grad(solver="broyden")(theta, x), want)
    assert_close(grad_inside()(theta, x), want)


def shard_map_approximate_adjoints():
    theta, x = data()
    for options in (dict(adjoint="jfb"), dict(adjoint="phantom"), dict(adjoint="tail")):
        assert_close(sharded_value_and_grad(**options)(theta, x), single(theta, x, **options))


def shard_map_unrolled():
    """The reduction of the parameters' gradient must not be in the loop: its steps are taken
    under a condition that differs from device to device, so they would wait for each other."""
    theta, x = data()
    for options in (
        dict(adjoint="unrolled", solver="picard", max_steps=9),
        dict(adjoint=deqjax.Unrolled(checkpoint="sqrt"), solver="anderson", max_steps=5),
    ):
        got = sharded_value_and_grad(rtol=1e-3, **options)(theta, x)
        assert_close(got, single(theta, x, rtol=1e-3, **options))


def shard_map_closures():
    """Parameters and x reach the cell by closure only; no batch axis: one equation a device."""
    theta, x = data()

    def total(theta, x):
        def local(theta, x):
            sol = deqjax.fixed_point(
                lambda z: cell(z, theta, x),
                jnp.zeros((BATCH // DEVICES, N)),
                solver=SOLVERS["anderson"],
                rtol=1e-10,
                max_steps=200,
            )
            return jax.lax.psum(jnp.sum(jnp.sin(sol.z) * jnp.arange(1.0, N + 1)), "data")

        return jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())(theta, x)

    assert_close(jax.jit(jax.value_and_grad(total, (0, 1)))(theta, x), single(theta, x), 1e-7)


def shard_map_probe():
    theta, x = data()

    def both(**options):
        def local(theta, x, probe):
            sol = solve(theta, x, adjoint_probe=probe, **options)
            return jnp.sum(sol.z**2)

        def mapped(theta, x, probe):
            f = lambda *a: jax.lax.psum(local(*a), "data")
            specs = (P(), P("data"), P("data"))
            return jax.shard_map(f, mesh=mesh(), in_specs=specs, out_specs=P())(theta, x, probe)

        probe = deqjax.adjoint_probe(BATCH)
        return (jax.jit(jax.grad(f, 2))(theta, x, probe) for f in (mapped, local))

    got, want = both(adjoint="jfb")  # which solves nothing and reports constants
    assert_close(got.status, want.status)
    got, want = both()
    assert np.all(np.asarray(want.converged) == 1) and np.unique(want.steps).size > 1
    assert_close((got.steps, got.status), (want.steps, want.status))
    assert np.all(np.asarray(got.rel_residual) <= 1e-10)


def shard_map_second_derivative():
    theta, x = data()

    def penalty(value, theta):
        return jnp.sum(jax.grad(value, 1)(theta, x) ** 2)

    def total(theta, x):
        local = lambda theta, x: jax.lax.psum(loss(theta, x)[0], "data")
        return jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())(theta, x)

    got = jax.jit(jax.grad(lambda t: penalty(total, t)))(theta)
    want = jax.jit(jax.grad(lambda t: penalty(lambda t, x: loss(t, x)[0], t)))(theta)
    assert_close(got, want, 1e-6)


def values(solver):
    """z, steps and status inside shard_map and on one device."""
    theta, x = data()

    def local(theta, x):
        sol = solve(theta, x, solver)
        return sol.z, sol.stats.steps, sol.stats.status

    specs = dict(in_specs=(P(), P("data")), out_specs=P("data"))
    mapped = jax.jit(jax.shard_map(local, mesh=mesh(), **specs))(theta, x)
    alone = jax.jit(local)(theta, x)
    assert np.unique(alone[1]).size > 2
    return mapped, alone


def shard_map_newton_krylov():
    """Its Krylov spaces and line searches end on each device by themselves."""
    theta, x = data()
    assert_close(*values("newton_krylov"), 1e-9)
    options = dict(solver="newton_krylov")
    assert_close(sharded_value_and_grad(**options)(theta, x), single(theta, x, **options))
    assert_no_collective_in_the_loops(sharded_value_and_grad(**options))


def shard_map_line_search():
    theta, x = data()
    assert_close(*values("line_search"), 1e-9)
    want = single(theta, x)
    assert_close(sharded_value_and_grad(solver="line_search")(theta, x), want)


def shard_map_gmres_adjoint():
    theta, x = data()
    options = dict(adjoint_solver="gmres")
    assert_close(sharded_value_and_grad(**options)(theta, x), single(theta, x))
    assert_close(grad_inside(**options)(theta, x), single(theta, x))


def shard_map_shine():
    theta, x = data()
    options = dict(solver="broyden", adjoint=deqjax.Shine(refine=1))
    want = single(theta, x, **options)
    # An inverse built from differences of size 1e-10 is no more exact than this.
    assert_close(sharded_value_and_grad(**options)(theta, x), want, 1e-5)
    assert_close(grad_inside(**options)(theta, x), want, 1e-5)


def shard_map_reversible():
    """Replicated parameters are refused; cast outside of f, their gradients are summed once."""
    theta, x = data()
    theta["w"] *= 0.6
    options = dict(solver="picard", adjoint="reversible", rtol=1e-5)
    try:
        sharded_value_and_grad(**options)(theta, x)
    except ValueError as error:
        assert "pcast" in str(error)
    else:
        raise AssertionError("replicated parameters were not refused")

    def local(theta, x):
        theta = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), theta)
        return jax.lax.psum(loss(theta, x, **options)[0], "data")

    total = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())
    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    assert_close(step(theta, x), single(theta, x, **options), 1e-6)
    assert_no_collective_in_the_loops(step)


def shard_map_forward_mode():
    """A jvp along a direction in theta and x, and the Jacobian to a replicated scalar."""
    theta, x = jax.tree.map(jnp.asarray, data())
    rng = np.random.default_rng(1)
    dots = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (theta, x))

    def local(theta, x):
        return jnp.sin(solve(theta, x, forward_mode=True).z)

    mapped = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data"))
    for f in (
        lambda f: jax.jvp(f, (theta, x), dots)[1],
        lambda f: jax.jacfwd(lambda c: f(jax.tree.map(lambda p: c * p, theta), x))(1.0),
        lambda f: jax.grad(lambda t: jnp.sum(f(t, x)))(theta),
    ):
        got, want = (jax.jit(lambda f=f, g=g: f(g))() for g in (mapped, local))
        assert_close(got, want)


def shard_map_compacted():
    """Every device halves its own batch when its own samples allow it."""
    theta, x = data()
    assert_close(*values("compacted"), 1e-9)
    want = single(theta, x, solver="picard")
    assert_close(sharded_value_and_grad(solver="compacted")(theta, x), want)
    assert_close(grad_inside(solver="compacted")(theta, x), want)
    assert_no_collective_in_the_loops(sharded_value_and_grad(solver="compacted"))


# ------------------------------------------------------------------------------- compiled loops

COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)"
)


def computations(hlo):
    """name -> text of each computation of an HLO module."""
    found, name = {}, None
    for line in hlo.splitlines():
        head = re.match(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$", line)
        if head and not line.startswith(" ") and not line.startswith("HloModule"):
            name = head.group(1)
            found[name] = ""
        elif name is not None:
            found[name] += line + "\n"
    return found


def inside_loops(hlo):
    """Names of all computations that a while loop's body or condition can reach."""
    graph = computations(hlo)
    words = {n: set(re.findall(r"[\w.\-]+", t)) & graph.keys() for n, t in graph.items()}
    todo = []
    for text in graph.values():
        for line in text.splitlines():
            if re.search(r"\bwhile\(", line):
                todo += re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    reached = set()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += words[name]
    return graph, reached


def assert_no_collective_in_the_loops(step):
    hlo = step.lower(*data()).compile().as_text()
    graph, reached = inside_loops(hlo)
    # Two loops, each with a body and a condition, were found, and so was the one
    # reduction outside: the search does see collectives.
    assert len(reached) >= 4, sorted(reached)
    outside = "".join(t for n, t in graph.items() if n not in reached)
    assert COLLECTIVE.search(outside)
    for name in reached:
        hit = COLLECTIVE.search(graph[name])
        assert hit is None, f"{hit.group()} in {name}"


def no_collective_in_the_loops():
    for options in (dict(solver="anderson"), dict(solver="broyden")):
        for step in (sharded_value_and_grad(**options), grad_inside(**options)):
            assert_no_collective_in_the_loops(step)


def a_collective_in_f_is_found_in_the_loop():
    """The search above is not blind: a psum in the cell shows up inside the loop."""
    theta, x = data()

    def local(theta, x):
        f = lambda z: cell(z, theta, x) * 0.5 + 0.1 * jax.lax.pmean(z, "data")
        return deqjax.fixed_point(
            f, jnp.zeros_like(x), solver="picard", rtol=0.0, atol=0.0, max_steps=12
        ).z

    mapped = jax.jit(
        jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P("data"))
    )
    graph, reached = inside_loops(mapped.lower(theta, x).compile().as_text())
    assert any(COLLECTIVE.search(graph[name]) for name in reached)
    z = np.zeros((DEVICES, BATCH // DEVICES, N))
    xs = x.reshape(z.shape)
    for _ in range(12):
        z = np.tanh(z @ theta["w"].T + theta["b"] + xs) * 0.5 + 0.1 * z.mean(0)
    assert_close(mapped(theta, x), z.reshape(x.shape))


def a_collective_in_f_needs_an_agreed_stop():
    """Devices that stop at different steps would wait for each other for ever in f's psum: they
    must stop together, or the solve be refused with a sentence."""
    _, x = data()

    def local(x):
        f = lambda z: 0.5 * jnp.sin(z) + x + 0.0 * jax.lax.pmean(z, "data")
        return deqjax.fixed_point(
            f, jnp.zeros_like(x), solver="picard", batch_axis=0, rtol=1e-6, max_steps=60
        ).z

    mapped = jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=P("data"), out_specs=P("data")))
    try:
        z = jax.block_until_ready(mapped(x))
    except (TypeError, ValueError) as error:
        assert "collective" in str(error) or "psum" in str(error)
        return
    assert_close(z, 0.5 * np.sin(z) + x, 1e-4)


def a_collective_couples_cotangents_of_any_size():
    """Where f communicates, the adjoint equations of all devices are one, of one size."""
    _, x = data()
    weights = jnp.geomspace(1e-9, 1e3, BATCH)[:, None]

    def local(weights, x):
        f = lambda z, x: 0.5 * jnp.sin(z) + 0.3 * jax.lax.pmean(z, "data") + x
        sol = lambda x: deqjax.fixed_point(
            f, jnp.zeros_like(x), x, solver="picard", rtol=1e-12, max_steps=200
        )
        return jax.grad(lambda x: jnp.sum(weights * sol(x).z))(x)

    def whole(weights, x):
        rows = lambda z: jnp.mean(z.reshape(DEVICES, -1, N), axis=0)
        f = lambda z, x: 0.5 * jnp.sin(z) + 0.3 * jnp.tile(rows(z), (DEVICES, 1)) + x
        sol = lambda x: deqjax.fixed_point(
            f, jnp.zeros_like(x), x, solver="picard", rtol=1e-12, max_steps=200
        )
        return jax.grad(lambda x: jnp.sum(weights * sol(x).z))(x)

    mapped = jax.shard_map(local, mesh=mesh(), in_specs=(P("data"),) * 2, out_specs=P("data"))
    assert_close(jax.jit(mapped)(weights, x), jax.jit(whole)(weights, x))


def shard_map_leaves_of_different_types():
    """One leaf of the state varies over devices by itself, the other because a solve ends by both;
    f of the other is the same on all devices, or not even a function of the state."""
    theta, x = data()
    theta = theta["b"]

    def total(theta, x, solver, constant):
        def f(z):
            b = theta if constant else 0.5 * jnp.sin(z["b"]) + theta
            return {"a": 0.4 * jnp.tanh(z["a"] + theta) + x, "b": b}

        z0 = {"a": jnp.zeros_like(x), "b": jnp.zeros_like(theta)}
        z = deqjax.fixed_point(f, z0, solver=SOLVERS[solver], rtol=1e-10).z
        return jnp.sum(jnp.sin(z["a"])) + jnp.sum(z["b"] ** 2)

    for solver, constant in (("anderson", False), ("picard", True)):
        gradient = jax.grad(lambda t, x, s=solver, c=constant: total(t, x, s, c), (0, 1))
        specs = P(), P("data")
        mapped = jax.shard_map(gradient, mesh=mesh(), in_specs=specs, out_specs=specs)
        parts = jax.vmap(gradient, (None, 0))(theta, x.reshape(DEVICES, -1, N))
        want = parts[0].sum(axis=0), parts[1].reshape(x.shape)
        assert_close(jax.jit(mapped)(theta, x), want)


# ------------------------------------------------------------------------------- other ways


def named_sharding():
    """jit with sharded batch, then also with sharded parameters (tensor parallel)."""
    theta, x = data()
    want = single(theta, x)
    step = jax.jit(jax.value_and_grad(lambda t, x: loss(t, x)[0], (0, 1)))
    one = mesh()
    put = lambda a, spec, m: jax.device_put(a, NamedSharding(m, spec))
    got = step(put(theta, P(), one), put(x, P("data"), one))
    assert_close(got, want)
    assert got[1][1].sharding.spec[0] == "data"

    two = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    split = {"w": put(theta["w"], P("model", None), two), "b": put(theta["b"], P("model"), two)}
    assert_close(step(split, put(x, P("data", None), two)), want)

    # The history is laid out like the state, not gathered.
    sol = jax.jit(lambda t, x: solve(t, x))(put(theta, P(), one), put(x, P("data"), one))
    assert sol.z.sharding.spec[0] == "data"
    for leaf in jax.tree.leaves(sol.state.solver_state.w):
        assert leaf.addressable_shards[0].data.shape[0] == BATCH // DEVICES


def pmap():
    theta, x = data()
    rows = x.reshape(DEVICES, BATCH // DEVICES, N)

    def step(theta, x):
        (value, sol), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(theta, x)
        return jax.lax.psum(value, "i"), jax.lax.psum(grads[0], "i"), grads[1], sol.stats.steps

    value, theta_grad, x_grad, steps = jax.pmap(step, axis_name="i", in_axes=(None, 0))(theta, rows)
    want_value, (want_theta, want_x) = single(theta, x)
    assert_close(value[0], want_value)
    assert_close(jax.tree.map(lambda g: g[0], theta_grad), want_theta)
    assert_close(np.asarray(x_grad).reshape(x.shape), want_x)
    assert steps.shape == rows.shape[:2]


def named_sharding_of_other_solvers():
    """Stages gather samples from all devices, Krylov spaces are those of the whole batch."""
    theta, x = data()
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh(), spec))
    want = single(theta, x)
    for solver in ("newton_krylov", "compacted"):
        step = jax.jit(jax.value_and_grad(lambda t, x, s=solver: loss(t, x, solver=s)[0], (0, 1)))
        assert_close(step(put(theta, P()), put(x, P("data"))), want)
        sol = jax.jit(lambda t, x, s=solver: solve(t, x, s))(put(theta, P()), put(x, P("data")))
        assert np.all(sol.stats.converged)


def explicit(solver):
    """A mesh with Explicit axes: shardings are part of the types inside jit."""
    theta, x = data()
    want = single(theta, x)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
        sharded = jax.tree.map(lambda p: put(p, P()), theta), put(x, P("data", None))
        sol = jax.jit(lambda t, x: solve(t, x, solver))(*sharded)
        assert jax.typeof(sol.z).sharding.spec[0] == "data"
        got = jax.jit(jax.value_and_grad(lambda t, x: loss(t, x, solver=solver)[0], (0, 1)))(
            *sharded
        )
    assert_close(jax.tree.map(np.asarray, got), want)


def explicit_sharding():
    explicit("anderson")


def explicit_sharding_picard():
    explicit("picard")


def explicit_sharding_broyden():
    explicit("broyden")


def explicit_sharding_newton_krylov():
    explicit("newton_krylov")


def explicit_sharding_compacted():
    """Right, or refused with a sentence of the library's own."""
    try:
        explicit("compacted")
    except (TypeError, ValueError) as error:
        assert "Compacted" in str(error), error


def explicit_sharding_follows_f():
    """z0 lies on all devices and f(z0) is spread over them; with a trace."""
    theta, x = data()
    want = single(theta, x)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))

    def loss(theta, x, solver):
        sol = deqjax.fixed_point(
            *(cell, jnp.zeros((BATCH, N)), theta, x),
            **dict(solver=solver, batch_axis=0, rtol=1e-10, max_steps=200, trace=True),
        )
        return jnp.sum(jnp.sin(sol.z) * jnp.arange(1.0, N + 1)), sol

    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
        step = jax.jit(
            jax.value_and_grad(lambda t, x: loss(t, x, SOLVERS["anderson"]), (0, 1), has_aux=True)
        )
        (value, sol), grads = step(theta, x)
        assert jax.typeof(sol.z).sharding.spec[0] == "data"
        assert_close((value, grads), want)
        steps = np.arange(BATCH), np.asarray(sol.stats.steps)
        assert_close(np.asarray(sol.stats.trace)[steps[1], steps[0]], sol.stats.residual)
        try:
            loss(theta, x, OTHERS["compacted"])
        except ValueError as error:
            assert "explicitly sharded" in str(error), error
        else:
            raise AssertionError("Compacted gathers samples across an explicit mesh")


def shard_map_over_some_axes():
    """The other axes of the mesh stay the compiler's."""
    theta, x = data()
    want = single(theta, x)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def total(theta, x):
        local = lambda theta, x: jax.lax.psum(loss(theta, x)[0], "data")
        specs = P(), P("data")
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"data"})
        return mapped(theta, x)

    split = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P("model"))), theta)
    assert_close(jax.jit(jax.value_and_grad(total, (0, 1)))(split, x), want)


def explicit_one_equation():
    """One equation whose own axes are spread over devices: every product is summed over them."""
    x = np.random.default_rng(1).normal(size=(BATCH, 4, 4))
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)

    def loss(x, solver):
        f = lambda z, x: 0.9 * jnp.sin(z) + x
        sol = deqjax.fixed_point(f, jnp.zeros_like(x), x, solver=solver, rtol=1e-10, max_steps=200)
        return jnp.sum(jnp.cos(sol.z)), sol

    for solver in (SOLVERS | OTHERS).values():
        if solver.leaves_samples_behind:
            continue
        step = jax.jit(jax.value_and_grad(lambda x, s=solver: loss(x, s), has_aux=True))
        (value, sol), grad = step(x)
        for spec in (P("a"), P(None, "b"), P("a", "b"), P(None, None, ("a", "b"))):
            with jax.set_mesh(mesh):
                (got, spread), got_grad = step(jax.device_put(x, NamedSharding(mesh, spec)))
            assert np.all(spread.stats.converged)
            assert_close((got, got_grad, spread.z), (value, grad, sol.z))


PROGRAMS = (
    shard_map_values,
    shard_map_stability,
    shard_map_gradients,
    shard_map_approximate_adjoints,
    shard_map_unrolled,
    shard_map_closures,
    shard_map_probe,
    shard_map_second_derivative,
    shard_map_newton_krylov,
    shard_map_line_search,
    shard_map_gmres_adjoint,
    shard_map_shine,
    shard_map_reversible,
    shard_map_forward_mode,
    shard_map_compacted,
    no_collective_in_the_loops,
    a_collective_in_f_is_found_in_the_loop,
    a_collective_in_f_needs_an_agreed_stop,
    a_collective_couples_cotangents_of_any_size,
    shard_map_leaves_of_different_types,
    named_sharding,
    named_sharding_of_other_solvers,
    pmap,
    explicit_sharding,
    explicit_sharding_picard,
    explicit_sharding_broyden,
    explicit_sharding_newton_krylov,
    explicit_sharding_compacted,
    explicit_sharding_follows_f,
    shard_map_over_some_axes,
    explicit_one_equation,
)

if __name__ == "__main__":
    assert len(jax.devices()) == DEVICES
    jax.config.update("jax_enable_x64", True)
    for program in PROGRAMS:
        if program.__name__ in sys.argv[1:]:
            print(program.__name__, flush=True)
            program()
