"""The corpus and the task that a config names."""

from __future__ import annotations

from deqjax.data import Corpus, Stream, load_corpus
from deqjax.training import LanguageModelling, OptionError, checked

from .config import Config
from .models import build

VOCABULARY = "vocabulary.json"  # in a run's folder, beside its checkpoints


def prepare(config: Config) -> tuple[Corpus, LanguageModelling]:
    """The corpus and the task; whatever is wrong with the options is an `OptionError`."""
    checked(config.solver, config.train, config.penalties, config)
    try:
        corpus = load_corpus(config.dataset, config.data_dir, level=config.level)  # type: ignore
        size = len(corpus.vocabulary)
        task = LanguageModelling(
            new_model=lambda rngs: build(config, size, rngs),
            train=stream(config, corpus, corpus.train, config.train.batch_size),
            valid=stream(config, corpus, corpus.valid, config.eval_rows),
            adjoint=config.solver.adjoint,
            warm_start=config.warm_start,
            penalties=config.penalties,
            seed=config.train.seed,
        )
        task.carry()  # builds the model's shapes: a width that heads do not divide is found here
    except (ValueError, TypeError, ImportError) as wrong:
        raise OptionError(str(wrong)) from None
    return corpus, task


def stream(config: Config, corpus: Corpus, ids, rows: int) -> Stream:
    """`ids` in that many rows, in segments as long as those of training."""
    return Stream(ids, rows, config.segment, corpus.vocabulary.start_id)
