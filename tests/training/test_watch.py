"""When solves stop converging, somebody hears of it, also after a restart."""

from deqjax.training import ConvergenceWatch


def rows(shares):
    return [{"step": i, "converged": share} for i, share in enumerate(shares, start=1)]


def told(watch, rows):
    return [(row["step"], news) for row in rows if (news := watch.see(row["step"], row))]


def test_it_speaks_once_a_change():
    watch = ConvergenceWatch(window=4)
    news = told(watch, rows([1.0] * 10 + [0.0] * 10 + [1.0] * 10))
    assert [step for step, _ in news] == [11, 24]
    assert "stopped converging" in news[0][1] and "converge again" in news[1][1]
    found = watch.summary()
    assert found == {
        "least_converged": 0.0,
        "stopped_converging": [11],
        "converging_again": [24],
    }


def test_a_warm_up_stack_and_a_short_run_say_nothing():
    watch = ConvergenceWatch(window=4)
    assert not told(watch, [{"step": 1, "forward_steps": 2.0}] * 9)
    assert watch.summary() == {}
    assert not told(watch, rows([0.0, 0.0, 0.0]))


def test_a_restart_knows_what_was_said():
    before = rows([1.0] * 5 + [0.0] * 5)
    watch, again = ConvergenceWatch(window=4), ConvergenceWatch(window=4)
    assert told(watch, before)
    again.catch_up(before)
    later = [{**row, "step": row["step"] + 10} for row in rows([0.0] * 5 + [1.0] * 5)]
    assert told(watch, later) == told(again, later) and watch.summary() == again.summary()


def test_a_gain_that_stays_large_is_told_once():
    watch = ConvergenceWatch(window=4)
    gains = [3.0, 9e9, 4.0, 5.0] + [1.5e3] * 6
    news = told(
        watch, [{"step": i, "converged": 1.0, "adjoint_gain": g} for i, g in enumerate(gains)]
    )
    # One large sample in one step is no news; a median is.
    assert [step for step, _ in news] == [6] and "1500 times" in news[0][1]
    assert watch.summary()["largest_gain"] == 9e9 and watch.summary()["gained"] == [6]
