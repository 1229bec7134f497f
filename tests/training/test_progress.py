"""The progress line: what it says, how often, and where."""

import io

import jax.numpy as jnp
import pytest

from deqjax.training.progress import Progress, _count, _duration, _number, _percent


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """What a terminal shows of the text: a carriage return starts the line over."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_a_whole_line():
    out, clock = io.StringIO(), Clock()
    progress = Progress(600, out=out, every_seconds=0, clock=clock)
    for step in (119, 120):
        clock.now += 0.2
        progress.update(
            step,
            loss=jnp.float32(2.31),
            perplexity=10.07,
            forward_steps=8.2,
            adjoint_steps=9,
            converged=0.97,
            tokens_per_second=5120.0,
            valid_perplexity=None,
        )
    assert out.getvalue().splitlines()[1] == (
        "step 120/600   20%  loss 2.310  ppl 10.07  fwd  8.2  adj  9.0  converged  97%"
        "  5.1k tok/s  left 1m36s"
    )


def test_columns_hold_still():
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, out=out, every_seconds=0, clock=clock)
    for step, loss, share in ((1, 9.8765, 0.0), (20, 0.5, 0.55), (300, 123.4, 1.0)):
        clock.now += 1
        progress.update(step, loss=loss, converged=share, tokens_per_second=100.0)
    assert len({line.index("tok/s") for line in out.getvalue().splitlines()}) == 1
    progress.update(4, samples_per_second=1280.0)
    assert "1.3k samples/s" in out.getvalue()


def test_a_log_gets_a_line_now_and_then_and_the_last():
    out, clock = io.StringIO(), Clock()
    with Progress(100, out=out, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, loss=1.0)
            clock.now += 0.3
    lines = out.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 18, 35, 52, 69, 86, 100]
    assert lines[-1].endswith("in 30s")
    assert "\r" not in out.getvalue()


def test_a_run_that_stops_early_shows_its_last_step_once():
    out, clock = io.StringIO(), Clock()
    with Progress(100, out=out, clock=clock) as progress:
        for step in (1, 2, 3):
            progress.update(step)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/100", "3/100"]


def test_a_terminal_line_is_rewritten_and_ended():
    out, clock = Terminal(), Clock()
    with Progress(3, out=out, every_seconds=0, clock=clock) as progress:
        progress.update(1, a_long_name=1.0)
        clock.now += 1
        progress.update(2)
        progress.note("saved step 2")
        clock.now += 1
        progress.update(3)
    assert screen(out.getvalue()) == [
        "saved step 2",
        "step 3/3  100%  1.0 step/s  in 2s",
        "",
    ]


def test_a_terminal_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    with Progress(3, out=out) as progress:
        progress.update(1, **{f"field_{i}": 1.0 for i in range(20)})
    assert max(len(line) for line in screen(out.getvalue())) == 29


def test_compilation_is_not_in_the_time_left():
    out, clock = io.StringIO(), Clock()
    progress = Progress(100, out=out, every_seconds=0, clock=clock)
    clock.now += 600  # the first step compiles
    for step in range(1, 11):
        progress.update(step)
        clock.now += 2
    lines = out.getvalue().splitlines()
    assert "left" not in lines[0]
    assert lines[1].endswith("left 3m16s") and lines[9].endswith("left 3m00s")


def test_the_rate_moves_with_the_run():
    out, clock = io.StringIO(), Clock()
    progress = Progress(10_000, out=out, every_seconds=0, clock=clock)
    for step in range(1, 1001):
        progress.update(step)
        clock.now += 1.0 if step < 500 else 0.1
    assert "10.0 step/s" in out.getvalue().splitlines()[-1]


def test_values_are_read_only_when_shown():
    class Costly:
        reads = 0

        def __float__(self):
            Costly.reads += 1
            return 1.0

    clock = Clock()
    progress = Progress(100, out=io.StringIO(), clock=clock)
    for step in range(1, 50):
        progress.update(step, loss=Costly())
    assert Costly.reads == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "  0.0"),
        (9.9996, "10.000"),
        (2.31, "2.310"),
        (123.4, "123.4"),
        (1234.5, " 1234"),
        (0.0123, "0.012"),
        (1e-4, "1.00e-04"),
        (3e7, "3.00e+07"),
        (float("nan"), "  nan"),
        (-2.0, "-2.000"),
    ],
)
def test_numbers(value, text):
    assert _number(value) == text


def test_small_forms():
    assert [_duration(s) for s in (0, 59.4, 100, 7500, 273600)] == [
        "0s",
        "59s",
        "1m40s",
        "2h05m",
        "3d04h",
    ]
    assert [_count(v) for v in (0.25, 5.12, 812.0, 999.9, 5120, 2.5e6)] == [
        "0.25",
        "5.1",
        "812",
        "1.0k",
        "5.1k",
        "2.5M",
    ]
    assert [_percent(v) for v in (0.0, 0.9999, 0.29, 1.0, float("nan"))] == [
        "0%",
        "99%",
        "29%",
        "100%",
        "nan",
    ]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="total=-1"):
        Progress(-1)
    with pytest.raises(ValueError, match="every_seconds=-1"):
        Progress(1, every_seconds=-1)
