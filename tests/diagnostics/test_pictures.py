"""The pictures of basins, landscapes, spectra over training and gradient audits."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import deqjax
from deqjax import diagnostics
from deqjax.diagnostics._drawing import COLOURS, FAILED

from .cells import labels

plt.switch_backend("Agg")


def far_is_lost(z):
    """Two solutions, ±1 in the first number, and no end where the second is large."""
    first, second = z
    return jnp.array([jnp.sign(first), jnp.where(jnp.abs(second) > 1, -second, 0.0)])


@pytest.fixture(scope="module")
def lost():
    return diagnostics.basins(far_is_lost, jnp.zeros(2), points=8, solver="picard", span=2.1)


def test_basins_are_coloured_by_where_they_lead(lost, ax):
    assert lost.plot(ax) is ax
    image = ax.images[0].get_array()
    failed = np.abs(lost.y) > 1
    np.testing.assert_allclose(image[failed], np.broadcast_to(to_rgb(FAILED), (4, 8, 3)))
    kept = image[~failed]
    assert len(np.unique(kept[:, :4].reshape(-1, 3), axis=0)) == 1
    assert {tuple(kept[0, 0]), tuple(kept[0, 7])} == {to_rgb(c) for c in COLOURS[:2]}
    assert labels(ax) == ["(1, 0): 25%", "(-1, 0): 25%", "did not converge: 50%"]
    left, right, bottom, top = ax.images[0].get_extent()
    np.testing.assert_allclose((left, right, bottom, top), 2.4 * np.array([-1, 1, -1, 1]))


def test_steps_of_basins(lost, ax):
    diagnostics.plot_basins(lost, ax, show="steps")
    image = ax.images[0].get_array()
    failed = np.abs(lost.y) > 1
    assert np.isnan(np.ma.filled(image[failed], np.nan)).all()
    np.testing.assert_allclose(image[~failed], np.maximum(lost.stats.steps, 1)[~failed])
    figure = lost.figure()
    assert [a.get_title() for a in figure.axes[:2]] == [
        *("solution reached (paler: more steps)", "steps")
    ]
    plt.close(figure)


def test_the_path_lies_over_its_landscape(ax):
    found = diagnostics.landscape(lambda z, c: 0.5 * z + c, jnp.zeros(3), jnp.arange(3.0), points=5)
    assert found.plot(ax) is ax
    path = next(line for line in ax.lines if line.get_label() == "iterates")
    np.testing.assert_array_equal(path.get_xydata(), found.path)
    assert labels(ax) == ["iterates", "z₀", "z*"]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = found.path.T
    assert left < x.min() and x.max() < right and bottom < y.min() and y.max() < top
    unfinished = diagnostics.landscape(lambda z: -z, jnp.ones(3), solver="picard", points=3)
    unfinished.plot(other := Figure().add_subplot())
    assert labels(other)[-1] == "best z (did not converge)"


def test_spectra_in_the_plane(ax):
    spectra = [(100, [0.9 + 0j]), (0, [0.2 + 0.1j, 0.2 - 0.1j])]
    assert diagnostics.plot_spectra(spectra, ax) is ax
    first, last = ax.collections
    np.testing.assert_allclose(first.get_offsets(), [[0.2, 0.1], [0.2, -0.1]])
    np.testing.assert_allclose(last.get_offsets(), [[0.9, 0]])
    assert first.get_facecolor()[0, :3].sum() < last.get_facecolor()[0, :3].sum()  # lighter


def test_moduli_over_training(ax):
    moduli, unsure = np.array([0.9, 0.5]), np.array([0.3, 0.0])
    of_last = diagnostics.Spectrum(moduli + 0j, unsure, False, np.ones(2), unsure)
    diagnostics.plot_spectra([(7, of_last), (0, [0.2j, -0.1])], ax, show="moduli")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0.2], [7, 0.9]])
    band = ax.collections[-1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose((band.min(), band.max()), (0.2, 1.2))
    assert ax.get_xlabel() == "training step"


def test_an_audit_is_drawn_at_its_costs(ax):
    f = lambda z, w: 0.5 * z + w
    found = diagnostics.gradient_audit(
        *(f, jnp.zeros(2), jnp.ones(2)),
        adjoints={"JFB": "jfb", "Phantom": deqjax.Phantom(steps=4), "Unrolled": "unrolled"},
        solver="picard",
        max_steps=60,
        rtol=1e-9,
    )
    assert found.plot(ax) is ax
    points = [line.get_xydata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    forward = int(found.forward.f_evals)
    assert [row.evaluations for row in found.rows] == [forward, forward + 3, 2 * forward]
    assert found.evaluations == forward + int(found.reference.f_evals)
    floor = max(float(found.reference.rel_residual), 1e-16)
    want = [(row.evaluations, max(row.relative_error, floor)) for row in found.rows]
    np.testing.assert_allclose(points, want)
    assert labels(ax)[0] == "JFB (cosine 1.000)"
    assert ax.lines[-1].get_xdata()[0] == found.evaluations


def test_the_style_draws_with_the_colours_of_the_library():
    with plt.rc_context(diagnostics.style()):
        figure, ax = plt.subplots()
        assert [ax.plot([0, 1])[0].get_color() for _ in range(3)] == list(COLOURS[:3])
    plt.close(figure)


def test_says_what_is_wrong(lost, ax):
    with pytest.raises(ValueError, match="show must be 'solutions' or 'steps'"):
        lost.plot(ax, show="step")
    with pytest.raises(ValueError, match="show must be 'plane' or 'moduli'"):
        diagnostics.plot_spectra([(0, [1])], ax, show="radius")
    with pytest.raises(ValueError, match="at least one"):
        diagnostics.plot_spectra([], ax)
