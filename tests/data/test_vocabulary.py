import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax.data import Vocabulary

TEXT = "the cat saw\nthe dog\n"


def test_words_by_falling_frequency_then_alphabet():
    vocabulary = Vocabulary.build(TEXT, "word")
    assert vocabulary.tokens == ("<eos>", "the", "cat", "dog", "saw", "<unk>")
    assert vocabulary.start_id == 0
    ids = vocabulary.encode("the  bird\n\nsaw")
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 5, 0, 0, 4]
    assert vocabulary.decode(ids) == "the <unk>\n\nsaw"


def test_an_existing_unknown_word_is_reused():
    vocabulary = Vocabulary.build("<unk> a <unk>\n", "word")
    assert vocabulary.tokens == ("<unk>", "<eos>", "a")
    assert vocabulary.encode("zebra").tolist() == [0]


def test_characters_have_a_newline_and_no_eos():
    vocabulary = Vocabulary.build("abba\n", "char")
    assert vocabulary.tokens == ("a", "b", "\n", "\ufffd")
    assert vocabulary.eos is None
    assert vocabulary.start_id == 2
    assert vocabulary.encode("az\n").tolist() == [0, 3, 2]
    assert Vocabulary.build("ab", "char").start_id == 2  # added: a stream always has a start


def test_tokens_count_as_they_come():
    assert Vocabulary.build(["b", "a", "b"], "word").tokens == ("b", "a", "<eos>", "<unk>")


def test_max_size_keeps_the_most_frequent_and_the_special_ones():
    vocabulary = Vocabulary.build("a a a b b c c c c\n", "word", max_size=4)
    assert vocabulary.tokens == ("c", "a", "<eos>", "<unk>")
    assert Vocabulary.build("a b", "word", max_size=2).tokens == ("<eos>", "<unk>")
    assert len(Vocabulary.build(TEXT, "word", max_size=100)) == 6


@settings(max_examples=50)
@given(st.text())
def test_characters_round_trip(text):
    vocabulary = Vocabulary.build(text, "char")
    assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=50)
@given(st.text(alphabet="ab \n\t"))
def test_words_round_trip_up_to_whitespace(text):
    vocabulary = Vocabulary.build(text, "word")
    expected = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    assert vocabulary.decode(vocabulary.encode(text)) == expected


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary.build("zoë said 戦場\n", "word")
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]


def test_fingerprint_is_of_the_content():
    a, b = Vocabulary.build(TEXT, "word"), Vocabulary.build(TEXT + TEXT, "word")
    assert a.fingerprint == Vocabulary(a.tokens, "word", "<unk>", "<eos>").fingerprint
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != Vocabulary.build("another text", "word").fingerprint
    assert a.fingerprint != Vocabulary(a.tokens, "word", None, "<eos>").fingerprint
    assert len(a.fingerprint) == 64


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("cat", "cow"),
        lambda text: text.replace("vocabulary-1", "vocabulary-9"),
        lambda text: json.dumps([1, 2]),
        lambda text: json.dumps({**json.loads(text), "tokens": [1, 2]}),
        lambda text: json.dumps({**json.loads(text), "unk": ["cat"]}),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "v.json"
    Vocabulary.build(TEXT, "word").save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"v\.json is not a vocabulary"):
        Vocabulary.load(path)


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="'word' or 'char', got 'wrod'"):
        Vocabulary.build("a", "wrod")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_size must be at least 2"):
        Vocabulary.build("a", "word", max_size=1)
    with pytest.raises(ValueError, match="got 'a' twice"):
        Vocabulary(("a", "a"), "char")
    with pytest.raises(ValueError, match="eos='e' is not among"):
        Vocabulary(("a",), "word", eos="e")
    with pytest.raises(ValueError, match="needs eos"):
        Vocabulary(("a",), "word")
    with pytest.raises(ValueError, match="'c' is not in the vocabulary"):
        Vocabulary(("a", "b"), "char").encode("abc")
    with pytest.raises(ValueError, match="no newline"):
        _ = Vocabulary(("a", "b"), "char").start_id
    for outside in (-1, 2):
        with pytest.raises(ValueError, match=f"id {outside} is outside"):
            Vocabulary(("a", "b"), "char").decode([outside])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_saved_vocabulary_is_for_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        Vocabulary.build(TEXT, "word").save(tmp_path / "v.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "v.json").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]
