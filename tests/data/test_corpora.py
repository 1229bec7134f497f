import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deqjax.data import CORPORA, load_corpus, python_docs

WORDS = {
    "train": "\n = Title = \n\n the cat \x85 saw\x0cthe dog\r\n the <unk> \n",
    "valid": "the dog \n\n",
    "test": "the bird",
}


def write(folder, pattern, texts=WORDS):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (folder / pattern.format(split)).write_bytes(text.encode())
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def no_datasets(monkeypatch):
    """Any import of `datasets` fails, so a corpus can only come from its cache."""
    monkeypatch.setitem(sys.modules, "datasets", None)


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "pattern"), [("ptb", "ptb.{}.txt"), ("wikitext-103", "wiki.{}.tokens")]
)
def test_words(tmp_path, cache, name, pattern):
    pytest.importorskip("datasets")
    corpus = load_corpus(name, write(tmp_path / "a [odd]* name", pattern), cache_dir=cache)
    decode = corpus.vocabulary.decode
    assert decode(corpus.train) == "\n= Title =\n\nthe cat saw the dog\nthe <unk>\n"
    assert decode(corpus.valid) == "the dog\n\n"
    assert decode(corpus.test) == "the <unk>\n"
    assert corpus.vocabulary.tokens[:2] == ("<eos>", "the")
    assert (corpus.name, corpus.level) == (name, "word")
    for ids in (corpus.train, corpus.valid, corpus.test):
        assert isinstance(ids, np.memmap)
        assert ids.dtype == np.int32
    # No table of `datasets`, no temporary file: the encoded corpus alone is left.
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == [
        "manifest.json",
        "test.npy",
        "train.npy",
        "valid.npy",
        "vocabulary.json",
    ]
    assert len(list(cache.iterdir())) == 1


def test_text_by_character_and_by_word(tmp_path, cache):
    pytest.importorskip("datasets")
    texts = {"train": "ab\n\n b\u2028c\n", "valid": "cd", "test": "a\n"}
    folder = write(tmp_path / "text", "{}.txt", texts)
    corpus = load_corpus("text", folder, cache_dir=cache)
    assert corpus.vocabulary.decode(corpus.train) == texts["train"]
    assert corpus.vocabulary.decode(corpus.valid) == "c\ufffd\n"
    words = load_corpus("text", folder, level="word", cache_dir=cache, max_vocabulary=3)
    assert words.vocabulary.decode(words.train) == "ab\n\n<unk> <unk>\n"
    parent = load_corpus("text", folder.parent, cache_dir=cache, level="word")
    assert len(parent.vocabulary) == 5


@pytest.mark.parametrize("level", ["word", "char"])
def test_a_byte_order_mark_is_no_letter(tmp_path, cache, level):
    pytest.importorskip("datasets")
    plain = write(tmp_path / "plain", "{}.txt")
    marked = tmp_path / "marked"
    write(marked, "{}.txt", {split: "\ufeff" + text for split, text in WORDS.items()})
    one, other = (load_corpus("text", x, level=level, cache_dir=cache) for x in (plain, marked))
    assert one.vocabulary == other.vocabulary
    for split in WORDS:
        np.testing.assert_array_equal(getattr(one, split), getattr(other, split))


def test_another_text_in_the_vocabulary_of_the_first(tmp_path, cache):
    pytest.importorskip("datasets")
    one = load_corpus("text", write(tmp_path / "one", "{}.txt"), level="word", cache_dir=cache)
    texts = dict.fromkeys(WORDS, "the bird saw the bird\n")
    folder = write(tmp_path / "other", "{}.txt", texts)
    other = load_corpus("text", folder, cache_dir=cache, vocabulary=one.vocabulary)
    assert other.vocabulary == one.vocabulary and other.level == "word"
    assert one.vocabulary.decode(other.train) == "the <unk> saw the <unk>\n"
    assert len(load_corpus("text", folder, level="word", cache_dir=cache).vocabulary) == 5
    with pytest.raises(ValueError, match="of level 'word': leave max_vocabulary and level alone"):
        load_corpus("text", folder, level="char", cache_dir=cache, vocabulary=one.vocabulary)


def test_a_folder_named_as_the_corpus_is_found(tmp_path, cache):
    pytest.importorskip("datasets")
    write(tmp_path / "data" / "ptb", "ptb.{}.txt")
    corpus = load_corpus("ptb", tmp_path / "data", cache_dir=cache)
    assert len(corpus.valid) == 4


def test_one_file_is_split_at_line_ends(tmp_path, cache):
    pytest.importorskip("datasets")
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "input.txt").write_text(text)
    for where in (tmp_path, tmp_path / "input.txt"):
        corpus = load_corpus("text", where, cache_dir=cache)
        parts = [corpus.vocabulary.decode(ids) for ids in (corpus.train, corpus.valid, corpus.test)]
        assert "".join(parts) == text
        assert all(part.endswith("\n") for part in parts)
        assert [round(len(part) / len(text), 2) for part in parts] == [0.9, 0.05, 0.05]


def test_one_long_line_is_split_at_a_blank(tmp_path, cache):
    pytest.importorskip("datasets")
    (tmp_path / "one.txt").write_text("word " * 1000)
    corpus = load_corpus("text", tmp_path, level="word", cache_dir=cache)
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == [900, 50, 51]


def test_python_docs_needs_nothing(cache, no_datasets):
    corpus = load_corpus("python-docs", cache_dir=cache)
    texts = python_docs()
    for split in ("train", "valid", "test"):
        assert corpus.vocabulary.decode(getattr(corpus, split)[:5000]) == texts[split][:5000]
        assert len(getattr(corpus, split)) == len(texts[split])


def test_a_second_load_reads_the_cache(tmp_path, cache, monkeypatch):
    pytest.importorskip("datasets")
    folder = write(tmp_path / "d", "ptb.{}.txt")
    first = load_corpus("ptb", folder, cache_dir=cache)
    monkeypatch.setitem(sys.modules, "datasets", None)
    moved = folder.rename(tmp_path / "elsewhere")  # the key is the content, not the place
    again = load_corpus("ptb", moved, cache_dir=cache)
    assert again.vocabulary == first.vocabulary
    np.testing.assert_array_equal(again.train, first.train)
    with pytest.raises(ImportError, match=r"deqjax\[experiments\]"):
        load_corpus("ptb", moved, cache_dir=cache, max_vocabulary=4)
    write(moved, "ptb.{}.txt", {"train": WORDS["train"].replace("cat", "cow")})
    with pytest.raises(ImportError, match=r"deqjax\[experiments\]"):
        load_corpus("ptb", moved, cache_dir=cache)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def fill_with_junk(path):
    path.write_bytes(b"\x80\x04junk")


@pytest.mark.parametrize("damage", [truncate, flip, fill_with_junk, Path.unlink])
@pytest.mark.parametrize("file", ["train.npy", "vocabulary.json", "manifest.json"])
def test_a_damaged_cache_is_made_again(cache, damage, file):
    load_corpus("python-docs", cache_dir=cache)
    whole = snapshot(cache)
    damage(next(cache.glob(f"*/{file}")))
    assert snapshot(cache) != whole
    load_corpus("python-docs", cache_dir=cache)
    assert snapshot(cache) == whole


def test_an_interrupted_write_leaves_no_half_cache(cache, monkeypatch):
    renamed = []

    def replace(source, target):
        if len(renamed) == 2:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch:
        patch.setattr("deqjax.data._cache.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            load_corpus("python-docs", cache_dir=cache)
    assert not list(cache.glob("*/manifest.json"))
    assert len(load_corpus("python-docs", cache_dir=cache).train) > 200_000


@pytest.mark.slow
def test_processes_may_race(cache):
    script = (
        "import sys; from deqjax.data import load_corpus\n"
        "for _ in range(3):\n"
        "    print(int(load_corpus('python-docs', cache_dir=sys.argv[1]).train.sum()))"
    )
    command = [sys.executable, "-c", script, str(cache)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [racer.communicate(timeout=600)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    total = int(load_corpus("python-docs", cache_dir=cache).train.sum())
    assert answers == [[str(total)] * 3] * 2


def test_the_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DEQJAX_CACHE", str(tmp_path / "from-environment"))
    load_corpus("python-docs")
    assert list((tmp_path / "from-environment").glob("python-docs-char-*/train.npy"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written .* set DEQJAX_CACHE or pass cache_dir"):
        load_corpus("python-docs", cache_dir=tmp_path / "file" / "folder")


def test_importing_the_package_is_light():
    script = (
        "import sys, types\n"
        "package = types.ModuleType('deqjax'); package.__path__ = sys.argv[1:]\n"
        "sys.modules['deqjax'] = package\n"
        "import deqjax.data\n"
        "print(sorted({'jax', 'datasets', 'pyarrow', 'pydoc_data'} & set(sys.modules)))"
    )
    import deqjax.data

    package = Path(deqjax.data.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(package)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


HUB_ROWS = {"train": ["", " = A = \n", " b b "], "validation": ["b"], "test": ["A", ""]}


@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_the_hub(cache, monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        column = "sentence" if name == "ptb" else "text"
        tables = {s: datasets.Dataset.from_dict({column: rows}) for s, rows in HUB_ROWS.items()}
        return datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus(name, cache_dir=cache)
    assert corpus.vocabulary.decode(corpus.train) == "\n= A =\nb b\n"
    assert corpus.vocabulary.decode(corpus.test) == "A\n\n"
    assert "trust_remote_code" not in asked
    assert asked["cache_dir"].startswith(str(cache))
    if name == "ptb":
        assert asked["revision"] == "refs/convert/parquet"
        assert all(file.endswith(".parquet") for file in asked["data_files"].values())
    else:
        assert (asked["path"], asked["name"]) == ("Salesforce/wikitext", "wikitext-2-v1")


def test_without_the_hub_the_files_are_named(cache, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        FileNotFoundError, match=r"put wiki\.train\.tokens, .* in one folder .* --data-dir"
    ) as caught:
        load_corpus("wikitext-103", cache_dir=cache)
    assert "\n" not in str(caught.value)


def test_files_are_named_in_errors(tmp_path, cache, no_datasets):
    def refuses(error, sentence, name="ptb", where=tmp_path):
        with pytest.raises(error, match=sentence) as caught:
            load_corpus(name, where, cache_dir=cache)
        assert "\n" not in str(caught.value)

    refuses(FileNotFoundError, r"gone is not a folder: .* ptb\.train\.txt", where=tmp_path / "gone")
    refuses(FileNotFoundError, r"ptb\.train\.txt is missing: .*; the folder has nothing")
    (tmp_path / "penn.txt").touch()
    refuses(FileNotFoundError, r"ptb\.train\.txt is missing: .*; the folder has penn\.txt")
    refuses(ValueError, r"penn\.txt is empty: it should hold UTF-8 text", name="text")
    (tmp_path / "penn.txt").write_text("\ufeff\n")
    refuses(ValueError, r"penn\.txt is empty", name="text")
    write(tmp_path, "ptb.{}.txt", {"train": "a\n", "test": "a\n"})
    refuses(FileNotFoundError, r"ptb\.valid\.txt is missing: .* ptb\.valid\.txt, ptb\.test\.txt")
    (tmp_path / "ptb.valid.txt").write_text(" \n\n")
    refuses(ValueError, r"ptb\.valid\.txt is empty")
    bad = b"x" * (2**20 - 1) + "é".encode() + b"\xff\n"  # a character across two blocks read
    (tmp_path / "ptb.valid.txt").write_bytes(bad)
    refuses(ValueError, rf"ptb\.valid\.txt is not UTF-8 text \(first at byte {2**20 + 1}\)")
    (tmp_path / "ptb.valid.txt").write_bytes(b"abc\xc3")
    refuses(ValueError, r"ptb\.valid\.txt is not UTF-8 text \(first at byte 3\)")


def test_a_text_too_short_to_split(tmp_path, cache):
    pytest.importorskip("datasets")
    (tmp_path / "short.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"short\.txt has too little text to split 90/5/5"):
        load_corpus("text", tmp_path, cache_dir=cache)


def test_names_and_options_are_checked(tmp_path, cache):
    with pytest.raises(ValueError, match="no corpus 'wikitext2': did you mean 'wikitext-2'"):
        load_corpus("wikitext2")
    with pytest.raises(ValueError, match=r"no corpus 'xyz': there are python-docs, ptb"):
        load_corpus("xyz")
    with pytest.raises(ValueError, match="'word' or 'char', got 'byte'"):
        load_corpus("ptb", tmp_path, level="byte")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes no data_dir"):
        load_corpus("python-docs", tmp_path)
    with pytest.raises(ValueError, match=r"needs data_dir: a folder with train\.txt"):
        load_corpus("text", cache_dir=cache)
    assert set(CORPORA) == {"python-docs", "ptb", "wikitext-2", "wikitext-103", "text"}
