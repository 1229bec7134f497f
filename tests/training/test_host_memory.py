"""Memory that a process frees is kept: what the C library is told, and when it is not."""

import ctypes
import platform

import pytest

from deqjax.training import keep_freed_memory
from deqjax.training.host_memory import SETTINGS

# The numbers of mallopt(3) as glibc's malloc.h has them.
GLIBC = {-1: "M_TRIM_THRESHOLD", -4: "M_MMAP_MAX"}


@pytest.fixture
def told(monkeypatch):
    """What `mallopt` was called with, on a machine with glibc whose environment says nothing."""
    calls, answers = {}, {}

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            name = GLIBC[parameter]
            calls[name] = value
            return answers.get(name, 1)

    for name in (*SETTINGS, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    calls["answers"] = answers
    return calls


def test_no_block_comes_from_the_system_and_none_goes_back(told):
    assert keep_freed_memory() is True
    assert (told["M_MMAP_MAX"], told["M_TRIM_THRESHOLD"]) == (0, -1)


@pytest.mark.parametrize("name", GLIBC.values())
def test_a_refusal_is_reported(told, name):
    told["answers"][name] = 0
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "65536") for name in SETTINGS), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=9")],
)
def test_what_the_environment_says_stands(told, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False
    assert not set(told) & set(GLIBC.values())


def test_tunables_of_others_are_no_setting_of_malloc(told, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off")
    assert keep_freed_memory() is True


def test_another_c_library_is_left_alone(told, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
    assert not set(told) & set(GLIBC.values())
