# pyright: reportMissingImports=false
# (the peers are optional)
"""The adapter of torchdeq, on the CPU or the GPU, as JAX is; see `peers` for what all adapters do.

A call waits until a GPU is done. torch multiplies float32 matrices in float32 unless told
otherwise; so does JAX in these benchmarks (`__main__`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from .cells import Cell
from .peers import LARGEST_BUDGET, Entry, adjoint_residual, true_residual
from .report import Settings

# label: (solver, its options, budget of the i-th recorded iterate, f evaluations of a budget)
# One difference less than `m` is kept, so m=6 is the others' memory of 5.
VARIANTS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "picard": ("fixed_point_iter", {}, 1, 0),
    "anderson(6)": ("anderson", {"m": 6}, 3, 0),
    "anderson(6, lam=1e-8)": ("anderson", {"m": 6, "lam": 1e-8}, 3, 0),
    "broyden(10)": ("broyden", {"LBFGS_thres": 10}, 1, 1),
    "broyden(all)": ("broyden", {}, 1, 1),
}
# Solver options do not reach torchdeq's backward pass: its own defaults.
BACKWARD = ("fixed_point_iter", "anderson", "broyden")


def _torch(settings: Settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
        import torch
        import torchdeq

    torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("highest" if settings.products == "float32" else "high")
    return torch, torchdeq


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def tensors(cell: Cell, gradients: bool = False):
    import torch

    def of(array, gradients=gradients):
        return torch.tensor(array, device=_device(), requires_grad=gradients)

    return {k: of(v) for k, v in cell.theta.items()}, of(cell.x), of(cell.z0, False)


def _finished(result):
    """That result, once it is there: a GPU's kernels run after the call that starts them."""
    if _device() == "cuda":
        import torch

        torch.cuda.synchronize()
    return result


def _numpy(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def forward_entries(cell: Cell, rtol: float, settings: Settings) -> Iterator[Entry | str]:
    for label in VARIANTS:
        try:
            yield _forward(cell, rtol, settings, label)
        except RuntimeError as wrong:
            yield f"torchdeq {label}: {str(wrong).splitlines()[0][:120]}"


def _forward(cell, rtol, settings, label) -> Entry:
    torch, _ = _torch(settings)
    theta, x, z0 = tensors(cell)
    calls = []

    def f(z):
        calls.append(1)
        return cell.torch_f(z, theta, x)

    _, options, _, extra = VARIANTS[label]
    with torch.no_grad():
        unknown, budget = _fewest(f, z0, label, options, rtol)
    deq = _deq(settings, label, budget)
    deq.eval()

    def call():
        with torch.no_grad():
            return _finished(deq(f, z0, solver_kwargs=options)[0][0])

    calls.clear()
    residual = true_residual(cell, _numpy(call()))
    if len(calls) != budget + extra:
        raise RuntimeError(f"{len(calls)} evaluations counted, {budget + extra} expected")
    return Entry("torchdeq", label, call, residual, budget + extra, unknown + extra, budget)


def _deq(settings, label, budget, **options):
    _, torchdeq = _torch(settings)
    return torchdeq.get_deq(
        f_solver=VARIANTS[label][0],
        f_max_iter=budget,
        f_tol=0.0,
        f_stop_mode="rel",
        **options,
    )


def _fewest(f: Callable, z0, label, options, rtol) -> tuple[int, int]:
    """(fewest steps whose return value is good enough, fewest after which that is known)."""
    from torchdeq.solver import get_solver

    name, _, first, _ = VARIANTS[label]
    solver = get_solver(name)
    longest = 32
    best = float("inf")
    while longest <= LARGEST_BUDGET:
        _, iterates, stats = solver(
            f,
            z0,
            max_iter=longest,
            tol=0.0,
            stop_mode="rel",
            indexing=set(range(1, longest + 2)),
            **options,
        )
        if name == "broyden":
            iterates = iterates[: longest - first + 1]
        returned = np.array([_ratio(f, z) for z in iterates])
        absolute = stats["abs_trace"][:, 1:].double()
        size = absolute / stats["rel_trace"][:, 1:].double()
        known = _numpy(absolute.norm(dim=0) / size.norm(dim=0))[: len(returned)]
        if (known <= rtol).any() and (returned <= rtol).any():
            return int(np.argmax(returned <= rtol)) + first, int(np.argmax(known <= rtol)) + first
        best = min(best, float(np.nanmin(returned)))
        if len(returned) > 600 and np.nanmin(returned) > 0.5 * np.nanmin(returned[:300]):
            break  # no progress: it will not come
        if label == "broyden(all)" and longest >= 512:
            break  # memory and time of a step grow with the budget
        longest *= 4
    raise RuntimeError(f"not reached in {longest} steps; best residual {best:.1e}")


def _ratio(f, z) -> float:
    fz = f(z)
    return float((fz - z).norm() / fz.norm())


def both_entries(
    cell: Cell, rtol: float, settings: Settings, entry: Entry
) -> Iterator[Entry | str]:
    for backward in BACKWARD:
        try:
            yield _both(cell, rtol, settings, entry, backward)
        except RuntimeError as wrong:
            yield f"torchdeq {entry.variant} + {backward}: {str(wrong).splitlines()[0][:120]}"


def _both(cell, rtol, settings, entry: Entry, backward: str) -> Entry:
    torch, _ = _torch(settings)
    theta, x, z0 = tensors(cell, gradients=True)
    shift = torch.zeros_like(z0, requires_grad=True)
    v = torch.tensor(cell.v, device=_device())
    options = VARIANTS[entry.variant][1]
    label = {"fixed_point_iter": "picard", "anderson": "anderson(6)", "broyden": "broyden(all)"}

    # The budget of the adjoint, on its map at the solution, from zero as torchdeq starts it.
    z = entry.call().detach().clone().requires_grad_()
    fz = cell.torch_f(z, theta, x)

    def image(u):
        return torch.autograd.grad(fz, z, u, retain_graph=True)[0] + v

    _, budget = _fewest(image, torch.zeros_like(v), label[backward], {}, rtol)

    def make(k, k_backward, f):
        deq = _deq(
            settings,
            entry.variant,
            k,
            b_solver=backward,
            ift=True,
            b_max_iter=k_backward,
            b_tol=0.0,
            b_stop_mode="rel",
        )
        deq.train()
        return lambda: deq(f, z0, solver_kwargs=options)[0][-1]

    # In training it evaluates f once more, with a graph: one step less may then be enough.
    for k, k_backward in _pairs(entry.budget, budget, VARIANTS[entry.variant][2]):
        solve = make(k, k_backward, lambda z: cell.torch_f(z, theta, x) + shift)
        found = solve()
        (u,) = torch.autograd.grad((found * v).sum(), shift)
        solution = _numpy(found)
        residual = true_residual(cell, solution)
        reached = adjoint_residual(cell, solution, _numpy(u))
        if residual <= rtol and reached <= rtol:
            break
    else:
        raise RuntimeError(f"adjoint not reached; residuals {residual:.1e} and {reached:.1e}")
    solve = make(k, k_backward, lambda z: cell.torch_f(z, theta, x))
    inputs = [*theta.values(), x]

    def call():
        return _finished(torch.autograd.grad((solve() * v).sum(), inputs))

    return Entry("torchdeq", f"{entry.variant} + {backward} ({k_backward})", call, reached)


def _pairs(forward: int, backward: int, least: int):
    for k_backward in (backward, backward + 1, backward + 2):
        for k in (max(forward - 1, least), forward, forward + 1):
            yield k, k_backward


def fixed_steps(cell: Cell, steps: int, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Calls of exactly `steps` steps, and of as many bare f."""
    torch, _ = _torch(settings)
    theta, x, z0 = tensors(cell)

    def bare():
        z = z0
        with torch.no_grad():
            for _ in range(steps):
                z = cell.torch_f(z, theta, x)
        return _finished(z)

    def solve(label):
        _, options, first, _ = VARIANTS[label]
        # Two of the evaluations of Anderson's budget come before its first step.
        deq = _deq(settings, label, steps + first - 1)
        deq.eval()

        def call():
            with torch.no_grad():
                f = lambda z: cell.torch_f(z, theta, x)
                return _finished(deq(f, z0, solver_kwargs=options)[0][0])

        return call

    calls: dict[str, Callable[[], Any]] = {"torch f": bare}
    for label in ("picard", "anderson(6)", "broyden(10)"):
        calls[f"torchdeq {label}"] = solve(label)
    return calls
