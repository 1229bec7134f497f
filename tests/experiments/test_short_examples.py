"""The examples in one file, as long as promised, reach what they say."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import bus_engines, digits, digits_linen

EXAMPLES = (digits, digits_linen, bus_engines)


def run(example, folder, **changes):
    return example.main(replace(example.OPTIONS, runs=folder, **changes))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_one_file_of_ninety_lines(example):
    assert Path(example.__file__).read_text("utf-8").count("\n") <= 90


@pytest.mark.parametrize("example", [digits, pytest.param(digits_linen, marks=pytest.mark.slow)])
def test_digits_are_learned(example, tmp_path):
    assert run(example, tmp_path, steps=60) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("example", [digits, digits_linen])
def test_digits_are_learned_as_well_as_promised(example, tmp_path):
    assert run(example, tmp_path) == pytest.approx(0.978, abs=0.008)


def test_engines_are_estimated_to_their_standard_errors(tmp_path):
    theta, replacement = run(bus_engines, tmp_path)
    assert theta == pytest.approx(0.1997, abs=5e-4)
    assert replacement == pytest.approx(5.079, abs=0.02)
