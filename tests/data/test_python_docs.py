import re
import sys

import pytest

from deqjax.data import Vocabulary, bigram_perplexity, python_docs, unigram_perplexity
from deqjax.data.python_docs import docstring_topics, normalize, split_topics


def paragraphs(text):
    return {" ".join(p.split()) for p in re.split(r"\n\s*\n", text)}


def test_normal_form():
    assert normalize("“a” – b’s…\tc  \nß") == '"a" - b\'s...    c\n\ufffd'


def test_topics_are_spread_and_the_quoted_paragraphs_removed():
    quoted = "a paragraph that is quoted by another topic, word for word"
    topics = {f"t{i:02}": f"topic number {i}\n\nof everyday talk" for i in range(20)}
    topics["t03"] += f"\n\n  {quoted}"
    topics["t05"] += f"\n\n{quoted}"
    texts = split_topics(dict(reversed(topics.items())))
    assert re.findall(r"number (\d+)", texts["valid"]) == ["0", "10"]
    assert re.findall(r"number (\d+)", texts["test"]) == ["5", "15"]
    assert len(re.findall(r"number (\d+)", texts["train"])) == 16
    assert quoted in texts["test"]
    assert quoted not in texts["train"]
    assert "everyday talk" in texts["train"]  # short, so an ordinary repetition


def test_the_reference():
    pytest.importorskip("pydoc_data.topics", reason="this Python has no pydoc_data")
    texts = python_docs()
    assert texts == python_docs("reference")
    assert list(texts) == ["train", "valid", "test"]
    assert len(texts["train"]) > 200_000
    for split in ("valid", "test"):
        assert len(texts[split]) > 10_000
        kept = {p for p in paragraphs(texts[split]) if len(p) >= 40}
        assert kept.isdisjoint(paragraphs(texts["train"]))
    vocabulary = Vocabulary.build(texts["train"], "char")
    assert 80 <= len(vocabulary) <= 97
    train, valid = (vocabulary.encode(texts[split]) for split in ("train", "valid"))
    assert (valid == vocabulary.encode("\ufffd")[0]).mean() < 1e-3
    bigram = bigram_perplexity(train, valid, len(vocabulary))
    assert 8 < bigram < 18 < unigram_perplexity(train, valid, len(vocabulary)) < 40


def test_docstrings_where_the_reference_was_left_out(monkeypatch, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text('"""not this"""')
    (tmp_path / "broken.py").write_text("def (")
    (package / "inner.py").write_text(
        '"""Module.\n\n   Indented."""\nclass A:\n    "Class."\n    def f(self):\n        "Deep."\n'
    )
    for i in range(10):
        (tmp_path / f"m{i}.py").write_text(f'"""Module number {i}."""\nraise SystemExit')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    topics = docstring_topics()
    assert topics["package.inner"] == "Module.\n\nIndented.\n\nClass.\n\nDeep."
    assert len(topics) == 11
    assert python_docs() == split_topics(topics)
    with pytest.raises(ImportError):
        python_docs("reference")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="neither pydoc_data nor library sources"):
        python_docs()


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="got 'web'"):
        python_docs("web")  # type: ignore[arg-type]
