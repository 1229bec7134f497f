"""Text from a run's folder, from the outside."""

import sys
from pathlib import Path

import pytest

from deqjax.training import command_line
from experiments import generate
from experiments.generate import benchmark

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run.saved(folder)
    return folder


def run(*flags):
    command_line(generate.Config, generate.main, [str(flag) for flag in flags])


def test_texts_and_what_they_cost(folder, capsys):
    flags = ("--run", folder, "--length", 5, "--temperature", 0)
    run(*flags, "--prompt", "ab", "jac", "--count", 2)
    out = capsys.readouterr().out
    one, two = (out.split(f"--- prompt 1, text {i}\n")[1].split("\n---")[0] for i in (1, 2))
    assert one == two and one.startswith("ab") and len(one) == 7
    assert "--- prompt 2, text 2\njac" in out and "20 tokens in" in out and "a second" in out
    assert "steps a token" in out and "% converged" in out and "of 4 converged" in out


@pytest.mark.slow
def test_a_stream_is_the_same_text(folder, capsys):
    flags = ("--run", folder, "--length", 5, "--prompt", "ab")
    run(*flags)
    whole = capsys.readouterr().out.split("\n\n")[0]
    run(*flags, "--stream")
    assert capsys.readouterr().out.startswith(whole)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "a"], "--run says which model"),
        (["--run", "{}", "--top-p", "2"], "top_p must be"),
        (["--run", "{}", "--count", "0"], "--count must be an integer >= 1"),
        (["--run", "{}", "--count", "2", "--stream"], "--stream shows one text"),
        (["--run", "{}/nothing"], "there is no run at"),
        (["--run", "{}", "--record"], "--record goes with --benchmark"),
        (["--run", "{}", "--benchmark"], "leave out --run"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(flags, says, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*(flag.format(folder) for flag in flags))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.slow
def test_the_benchmark_finds_the_same_tokens(monkeypatch, tmp_path, capsys):
    small = dict(width=16, memory=8, heads=2, inner=16)
    cells = {"small": generate.benchmark.language_model.Config(**small)}
    for name, value in dict(CELLS=cells, PROMPT=5, TOKENS=6, RESULTS=tmp_path).items():
        monkeypatch.setattr(benchmark, name, value)
    run("--benchmark", "--rounds", 1, "--record")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small")]
    assert len(rows) == 4 and all(row.endswith("| yes |") for row in rows)
    assert "new weights, 6 tokens" in (tmp_path / "generate.md").read_text()
