"""The picture of a run: it is drawn from whatever the rows hold, and says what they say."""

import itertools
import math
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.image import imread

from deqjax.training.curves import _running_mean, _series, plot_curves


def run(steps: int = 60) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        loss = 2.0 + 3.0 * math.exp(-step / 10)
        row = {"step": step, "loss": loss, "perplexity": math.exp(loss), "converged": 0.9}
        rows.append({**row, "forward_steps": 8.0, "adjoint_steps": 9.0 + step / steps})
    for row in rows[9::10]:
        row["valid_perplexity"] = row["perplexity"] * 1.1
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look inside."""
    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def texts(figure) -> str:
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        if axes.get_legend():
            found += [text.get_text() for text in axes.get_legend().get_texts()]
    return "\n".join(found)


def test_the_picture_has_its_size_and_its_words(tmp_path, drawn):
    path = tmp_path / "curves.png"
    before = "matplotlib.pyplot" in sys.modules
    plot_curves(run(), path, title="a run", baselines={"unigram": 27.0, "trigram": 12.5})
    assert imread(path).shape[:2] == (500, 1400)
    words = texts(drawn[0])
    last = run()[-1]["valid_perplexity"]
    for word in ("a run", "unigram 27", "trigram 12.5", f"held out (last {last:.3g})"):
        assert word in words
    for word in ("forward (last 8.0)", "adjoint (last 10.0)", "last 90.0%", "training step"):
        assert word in words
    assert drawn[0].axes[0].get_yscale() == "log"
    assert ("matplotlib.pyplot" in sys.modules) == before, "no global figure state"


def test_close_baselines_do_not_overlap(tmp_path, drawn):
    names = {f"model {i}": 10 + i / 100 for i in range(4)}
    plot_curves(run(), tmp_path / "c.png", title="t", baselines=names)
    renderer = drawn[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in drawn[0].axes[0].texts]
    assert len(boxes) == 4
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "perplexity": 5.0}],
        [{"step": i, "valid_perplexity": 5.0} for i in range(3)],
        [{"step": i, "loss": 1000.0 * i} for i in range(3)],
        [{"step": i, "perplexity": None, "forward_steps": float("nan")} for i in range(3)],
        [{"perplexity": 2.0}, {"step": None, "loss": 1.0}, {"step": 3, "perplexity": -1.0}],
    ],
)
def test_rows_with_holes_are_drawn_without_a_warning(tmp_path, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(rows, tmp_path / "c.png", title="", baselines={"x": 3.0, "y": float("nan")})
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_what_is_missing_is_said(tmp_path, drawn):
    plot_curves([{"step": 1, "converged": 1.0}], tmp_path / "c.png", title="t")
    said = [[text.get_text() for text in axes.texts] for axes in drawn[0].axes]
    assert said == [["not recorded"], ["not recorded"], ["last 100.0%"]]


def test_a_run_without_a_solver_has_one_panel(tmp_path, drawn):
    rows = [{"step": i, "perplexity": 5.0, "converged": None} for i in range(3)]
    plot_curves(rows, tmp_path / "c.png", title="t")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        "Perplexity (lower is better)"
    ]


def test_another_heldout_key(tmp_path, drawn):
    rows = [{"step": i, "test_ppl": 4.0 + i} for i in range(3)]
    plot_curves(rows, tmp_path / "c.png", title="t", heldout_key="test_ppl")
    assert "held out (last 6)" in texts(drawn[0])


def test_series_leaves_out_what_is_no_number():
    rows = [
        {"step": 3, "x": 1.0},
        {"step": 1, "x": 2.0},
        {"step": 2, "x": None},
        {"step": 4, "x": math.inf},
        {"step": 5},
    ]
    steps, values = _series(rows, "x")
    assert steps.tolist() == [1, 3] and values.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("n", [0, 1, 4, 5, 80, 1000])
def test_the_running_mean_keeps_a_constant_and_starts_at_the_first_value(n):
    np.testing.assert_allclose(_running_mean(np.full(n, 3.0)), np.full(n, 3.0))
    line = np.arange(float(n))
    if n:
        assert _running_mean(line)[0] == 0.0
    middle = slice(n // 4, n // 2)  # away from the end, a line is its own centred mean
    np.testing.assert_allclose(_running_mean(line)[middle], line[middle])


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'deqjax\[plot\]'"):
        plot_curves([], tmp_path / "c.png", title="t")
