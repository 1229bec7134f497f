"""Diagnostics are tested against dense numpy answers, so in double precision."""

import jax
import pytest


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def ax():
    """Axes that nobody sees."""
    figure = pytest.importorskip("matplotlib.figure")
    return figure.Figure().add_subplot()
