"""A causal DEQ-Transformer, trained as a language model through the implicit function theorem.

python -m experiments.language_model                         # real text that Python ships
python -m experiments.language_model --dataset ptb --data-dir path/to/ptb
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deqjax.data import Corpus, Stream, bigram_perplexity, load_corpus, unigram_perplexity
from deqjax.nn import LanguageModel, TransformerCell
from deqjax.training import (
    LanguageModelling,
    OptionError,
    Run,
    SolverOptions,
    TrainOptions,
    checked,
    command_line,
    fit,
    sample,
)


@dataclass(frozen=True)
class Config:
    """Train a DEQ-Transformer language model."""

    dataset: str = "python-docs"
    """python-docs, ptb, wikitext-2, wikitext-103 or text"""
    data_dir: Path | None = None
    """folder with the data set's files; not for python-docs"""
    level: str | None = None
    """char or word; the data set's own if not given"""
    segment: int = 64
    """tokens in a training segment"""
    memory: int = 64
    """positions of the previous segments that attention still sees"""
    width: int = 128
    """width of the state z"""
    heads: int = 4
    """attention heads"""
    inner: int = 512
    """width of the feed-forward"""
    dropout: float = 0.0
    """rate of variational dropout"""
    warm_start: bool = False
    """start each training solve at the equilibrium of the segment before it, not at zero"""
    eval_rows: int = 8
    """rows that held-out text is scored in, side by side; fewer rows, more context"""
    solver: SolverOptions = field(default_factory=lambda: SolverOptions(rtol=5e-3))
    train: TrainOptions = field(default_factory=lambda: TrainOptions(stack_steps=250))


def prepare(config: Config) -> tuple[Corpus, LanguageModelling]:
    """The corpus and the task; whatever is wrong with the options is an `OptionError`."""
    checked(config.solver, config.train)
    try:
        corpus = load_corpus(config.dataset, config.data_dir, level=config.level)  # type: ignore
        start = corpus.vocabulary.start_id
        batch, segment = config.train.batch_size, config.segment
        task = LanguageModelling(
            new_model=lambda rngs: new_model(config, len(corpus.vocabulary), rngs),
            train=Stream(corpus.train, batch, segment, start),
            valid=Stream(corpus.valid, config.eval_rows, segment, start),
            adjoint=config.solver.adjoint,
            warm_start=config.warm_start,
        )
        task.carry()  # builds the model's shapes: a width that heads do not divide is found here
    except (ValueError, TypeError, ImportError) as wrong:
        raise OptionError(str(wrong)) from None
    return corpus, task


def new_model(config: Config, vocabulary: int, rngs) -> LanguageModel:
    """The model of `config`."""
    cell = TransformerCell(
        config.width,
        heads=config.heads,
        d_inner=config.inner,
        memory_length=config.memory,
        dropout=config.dropout,
        rngs=rngs,
    )
    return LanguageModel(
        vocabulary, cell, dropout=config.dropout, rngs=rngs, **config.solver.keywords()
    )


def main(config: Config) -> Run:
    corpus, task = prepare(config)
    size = len(corpus.vocabulary)
    baselines = {
        "unigram": unigram_perplexity(corpus.train, corpus.valid, size),
        "bigram": bigram_perplexity(corpus.train, corpus.valid, size),
    }
    print(
        f"{config.dataset}: {len(corpus.train):,} training and {len(corpus.valid):,} held-out "
        f"tokens ({corpus.level}), vocabulary {size:,}"
    )
    run = fit(task, config.train, config, name=config.dataset, baselines=baselines)
    report(run, corpus, baselines)
    return run


def report(run: Run, corpus: Corpus, baselines: dict[str, float]) -> None:
    """Print how the run compares, some of its text, and where everything is."""
    result = run.result
    print(f"\nheld-out perplexity, every one of {len(corpus.valid):,} tokens scored:")
    for name, value in [*baselines.items(), ("DEQ", result["valid_perplexity"])]:
        print(f"  {name:<8} {value:8.2f}")
    margin = baselines["bigram"] / result["valid_perplexity"]
    print(f"  the DEQ is {margin:.2f} times below the bigram model (Kneser-Ney)")
    print(
        f"solves: {result['final_forward_steps']:.1f} forward and "
        f"{result.get('final_adjoint_steps', 0):.1f} adjoint steps a batch, "
        f"{result['final_converged']:.0%} of samples converged, over the last tenth of training"
    )
    prompt = corpus.valid[:32]
    text = corpus.vocabulary.decode(sample(run.model, prompt, 300))
    (run.directory / "sample.txt").write_text(corpus.vocabulary.decode(prompt) + text)
    print(f"\na sample:\n{corpus.vocabulary.decode(prompt)}|{text}\n")
    print(f"{result['seconds']:.0f} s in all. Everything is in {run.directory}/ :")
    print("  result.json  metrics.jsonl  curves.png  sample.txt  config.json  checkpoints/")


if __name__ == "__main__":
    command_line(Config, main)
