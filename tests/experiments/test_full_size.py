"""The table of the paper's full-size models. What is compiled here is small."""

import json
from dataclasses import replace

import pytest

from deqjax import Anderson
from deqjax.training import command_line
from experiments.full_size import memory as full_size
from experiments.full_size import named


def run(*flags):
    command_line(full_size.Config, full_size.main, [str(flag) for flag in flags])


def test_an_unknown_model_gets_a_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("--only", "wt103-trelisnet", "--out", tmp_path / "out.md")
    assert stop.value.code == 2 and "did you mean 'wt103-trellisnet'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_equilibrium_takes_less_memory_than_the_layers():
    small = [
        replace(named(name), n_in=32, d=32, heads=2, inner=64)
        for name in ("wt103-transformer-small", "wt103-transformer-small-tied")
    ]
    deq, tied = (
        full_size.measure(config, Anderson() if config.solves else None, batch=4, segment=32)
        for config in small
    )
    assert deq.parameters == tied.parameters > 0
    assert 0 < deq.temporary < 0.5 * tied.temporary
    kept = full_size.measure(replace(small[1], checkpoint="sqrt"), None, batch=4, segment=32)
    assert kept.temporary < 0.6 * tied.temporary


def test_rows_say_which_models_go_in_chunks():
    def chunks(name):
        return {label: model.chunk_size for label, model, _ in full_size._rows(name, ["anderson"])}

    name = "wt103-transformer-small"
    size = full_size.CHUNKS[name]
    whole = f"{name} (anderson, all positions at once)"
    assert size and chunks(name) == {f"{name} (anderson)": size, whole: None}
    for other in named(name).explicit:
        assert chunks(other) == {other: None, f"{other} (in chunks)": size}
    assert chunks("ptb-trellisnet-explicit") == {"ptb-trellisnet-explicit": None}


@pytest.mark.slow
def test_the_table_is_written_and_added_to(tmp_path, capsys):
    out = tmp_path / "full_size.md"
    run("--only", "wt103-transformer-small-explicit", "--out", out)
    run("--only", "wt103-trellisnet-checkpointed", "--out", out)
    kept = json.loads(out.with_suffix(".json").read_text())
    assert set(kept["targets"]["cpu"]) == {
        "wt103-transformer-small-explicit",
        "wt103-transformer-small-explicit (in chunks)",
        "wt103-trellisnet-checkpointed",
    }
    text = out.read_text()
    for label, row in kept["targets"]["cpu"].items():
        chunk = row["chunk_size"] or "all"
        assert f"| {label} | {chunk} | {row['temporary'] / 1e9:.3f} |" in text
