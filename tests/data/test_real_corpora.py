"""The well-known corpora, token for token, where a checkout has them beside it."""

from pathlib import Path

import pytest

from deqjax.data import bigram_perplexity, load_corpus, unigram_perplexity

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def load(name, folder, cache, **options):
    pytest.importorskip("datasets")
    if not (DATA / folder).is_dir():
        pytest.skip(f"../shared/data/{folder} is not here")
    return load_corpus(name, DATA / folder, cache_dir=cache, **options)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("ptb", (929_589, 73_760, 82_430), 10_000),
        ("wikitext-2", (2_088_628, 217_646, 245_569), 33_278),
    ],
)
def test_token_counts(tmp_path, name, sizes, words):
    corpus = load(name, name, tmp_path)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == sizes
    assert len(corpus.vocabulary) == words
    unk = corpus.vocabulary.encode("<unk>")[0]
    assert 0 < (corpus.valid == unk).mean() < 0.06


def test_penn_treebank_baselines(tmp_path):
    corpus = load("ptb", "ptb", tmp_path)
    assert bigram_perplexity(corpus.train, corpus.test, 10_000) == pytest.approx(185.7, abs=0.1)
    assert unigram_perplexity(corpus.train, corpus.test, 10_000) == pytest.approx(639.8, abs=0.1)


def test_tiny_shakespeare(tmp_path):
    corpus = load("text", "tinyshakespeare", tmp_path)
    sizes = [len(corpus.train), len(corpus.valid), len(corpus.test)]
    text = (DATA / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    assert sum(sizes) == len(text)
    assert [round(size / len(text), 3) for size in sizes] == [0.9, 0.05, 0.05]
    assert len(corpus.vocabulary) == 66  # 65 characters and the replacement
    assert corpus.vocabulary.decode(corpus.valid) in text
