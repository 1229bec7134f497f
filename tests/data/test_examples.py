import doctest
import importlib

import pytest

EXAMPLES = {
    "vocabulary": 4,
    "streams": 4,
    "copy_memory": 3,
    "ngram": 3,
    "python_docs": 2,
    "corpora": 2,
    "sudoku": 6,
}


@pytest.mark.parametrize("module", EXAMPLES)
def test_docstring_examples(module, monkeypatch, tmp_path):
    monkeypatch.setenv("DEQJAX_CACHE", str(tmp_path))
    # Not `from deqjax.data import ...`: functions of the same names stand there.
    result = doctest.testmod(importlib.import_module(f"deqjax.data.{module}"))
    assert result.failed == 0
    assert result.attempted >= EXAMPLES[module]
