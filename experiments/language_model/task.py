"""The corpus and the task that a config names."""

from __future__ import annotations

from pathlib import Path

from deqjax.data import Corpus, Stream, Vocabulary, load_corpus
from deqjax.training import LanguageModelling, OptionError, checked

from .config import Config
from .models import build

VOCABULARY = "vocabulary.json"  # in a run's folder, beside its checkpoints


def prepare(
    config: Config, vocabulary: Vocabulary | None = None
) -> tuple[Corpus, LanguageModelling]:
    """The corpus and the task; whatever is wrong with the options is an `OptionError`.

    vocabulary: of the text, if it is not to be its own or that of the run to begin with.
    """
    checked(config.solver, config.train, config.penalties, config)
    try:
        corpus = load_corpus(
            config.dataset,
            config.data_dir,
            level=config.level,  # type: ignore
            vocabulary=vocabulary or _vocabulary(config),
        )
        size = len(corpus.vocabulary)
        task = LanguageModelling(
            new_model=lambda rngs: build(config, size, rngs),
            train=stream(config, corpus, corpus.train, config.train.batch_size),
            valid=stream(config, corpus, corpus.valid, config.eval_rows),
            adjoint=config.solver.adjoint,
            warm_start=config.warm_start,
            penalties=config.penalties,
            seed=config.train.seed,
            corpus=corpus.fingerprint,
        )
        task.carry()  # builds the model's shapes: a width that heads do not divide is found here
    except (ValueError, TypeError, ImportError) as wrong:
        raise OptionError(str(wrong)) from None
    return corpus, task


def run_name(config: Config) -> str:
    """The run's name where no flag gives one."""
    return config.dataset + ("" if config.model == "deq-transformer" else f"-{config.model}")


def _vocabulary(config: Config) -> Vocabulary | None:
    """Weights of another run know its tokens by their numbers, so this run takes its vocabulary;
    once it has begun, it has that itself."""
    train = config.train
    if train.init_from is None:
        return None
    own = train.runs / (train.name or run_name(config))
    places = ([] if train.restart else [own]) + [Path(train.init_from)]
    found = (folder / VOCABULARY for folder in places if (folder / VOCABULARY).exists())
    return next(map(Vocabulary.load, found), None)


def stream(config: Config, corpus: Corpus, ids, rows: int) -> Stream:
    """`ids` in that many rows, in segments as long as those of training."""
    return Stream(ids, rows, config.segment, corpus.vocabulary.start_id)
