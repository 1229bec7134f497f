"""The live view draws what a run says, as a hook and from its folder."""

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from deqjax.training import LiveView, Moment


def row(step, **more):
    return {"step": step, "loss": 2.0 / step, "forward_steps": 8.0, "converged": 1.0, **more}


@pytest.fixture
def drawn(monkeypatch):
    """Of each picture: its heading, its panels, and {label: the steps drawn}."""
    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        lines = [line for ax in self.axes for line in ax.get_lines()]
        steps = {x.get_label().split(" (")[0]: list(x.get_xdata()) for x in lines}
        titles = [ax.get_title(loc="left") for ax in self.axes]
        figures.append((self.get_suptitle(), titles, steps))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def moment(tmp_path, step, row, last=False, first=True):
    run = SimpleNamespace(directory=tmp_path, processes=SimpleNamespace(first=first))
    return Moment(
        **dict(run=run, step=step, state=None, metrics={}, count=1, waited=0.0),
        **dict(last=last, row={k: v for k, v in row.items() if k != "step"}),
    )


def test_as_a_hook_it_draws_the_rows_and_no_others(tmp_path, drawn):
    pictures = []
    view = LiveView(seconds=0.0, show=pictures.append)
    view(moment(tmp_path, 1, {}))
    view(moment(tmp_path, 2, row(2)))
    view(moment(tmp_path, 4, row(4, valid_loss=0.7)))
    assert len(pictures) == 2 and pictures[0].startswith(b"\x89PNG")
    heading, titles, steps = drawn[-1]
    assert heading == "step 4" and titles == ["loss", "solver steps", "converged"]
    assert steps["training"] == [2, 4] and steps["held out"] == [4]


def test_not_more_often_than_asked_but_at_the_end(tmp_path, drawn):
    view = LiveView(seconds=1e9, show=len)
    for step in range(1, 6):
        view(moment(tmp_path, step, row(step), last=step == 5))
    assert [heading for heading, *_ in drawn] == ["step 1", "step 5"]


def test_a_continued_run_has_its_earlier_part_too(tmp_path, drawn):
    lines = [json.dumps(row(step)) for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    LiveView(show=len)(moment(tmp_path, 6, row(6)))
    assert drawn[0][2]["training"] == [2, 4, 6]


def test_one_process_draws(tmp_path, drawn):
    LiveView(show=len)(moment(tmp_path, 1, row(1), first=False))
    assert not drawn


def test_it_follows_a_folder_until_the_run_has_ended(tmp_path, drawn):
    """The other process, in the pauses of this one: nothing, rows, more rows, an end."""
    folder, pauses = tmp_path / "run", []

    def write(*steps):
        folder.mkdir(exist_ok=True)
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row(step)) + "\n" for step in steps)

    def ended():
        pauses.append(None)
        if len(pauses) in (2, 3):
            write(*range(10 * len(pauses), 10 * len(pauses) + 2))
        return len(pauses) == 5

    LiveView(seconds=0.0, show=len).follow(folder, until=ended)
    assert [heading for heading, *_ in drawn] == ["nothing recorded yet", "step 21", "step 31"]
    (folder / "result.json").write_text("{}")
    LiveView(show=len).follow(folder)  # ends by itself
    assert drawn[-1][2]["training"] == [20, 21, 30, 31]


def test_the_stop_button_leaves_without_an_error(tmp_path):
    def stop():
        raise KeyboardInterrupt

    LiveView(show=len).follow(tmp_path, until=stop)


def test_news_stand_on_top(drawn):
    rows = [row(step, converged=0.3, adjoint_gain=4.0) for step in range(1, 30)]
    LiveView(show=len).draw(rows)
    heading, titles, _ = drawn[0]
    assert "step 20: solves have stopped converging" in heading
    assert titles[-1] == "gain of the adjoint"


def notebook(monkeypatch, kernel):
    """A stand-in for IPython; what it was told to show."""
    shown = []
    handle = SimpleNamespace(update=lambda image: shown.append(("update", image)))

    def display(image, display_id):
        shown.append(("new", image))
        return handle

    fake = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=kernel),
        display=SimpleNamespace(Image=lambda data: data[1:4], display=display),
    )
    monkeypatch.setitem(sys.modules, "IPython", fake)
    return shown


def test_in_a_notebook_it_updates_in_place(monkeypatch):
    shown = notebook(monkeypatch, kernel=object())
    view = LiveView()
    view.draw([row(1)])
    view.draw([row(2)])
    assert shown == [("new", b"PNG"), ("update", b"PNG")]


@pytest.mark.parametrize("terminal", [True, False])
def test_elsewhere_the_picture_lies_in_the_folder(tmp_path, monkeypatch, terminal):
    if terminal:
        shown = notebook(monkeypatch, kernel=None)
    else:
        shown = monkeypatch.setitem(sys.modules, "IPython", None)
    LiveView()(moment(tmp_path, 1, row(1)))
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG") and not shown
