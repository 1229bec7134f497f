"""Train a language model and say how it compares."""

from __future__ import annotations

import jax
from flax import nnx

from deqjax.data import Corpus, bigram_perplexity, unigram_perplexity
from deqjax.training import Run, connect, fit, sample, save_architecture
from deqjax.training.architectures import FILE as MODEL

from .config import Config
from .task import VOCABULARY, prepare, run_name


def main(config: Config) -> Run:
    connect(config.train.launch)
    corpus, task = prepare(config)
    size = len(corpus.vocabulary)
    baselines = {
        "unigram": unigram_perplexity(corpus.train, corpus.valid, size),
        "bigram": bigram_perplexity(corpus.train, corpus.valid, size),
    }
    say = print if jax.process_index() == 0 else lambda text: None
    say(
        f"{config.dataset}: {len(corpus.train):,} training and {len(corpus.valid):,} held-out "
        f"tokens ({corpus.level}), vocabulary {size:,}"
    )
    name = run_name(config)
    shape = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    files = {
        VOCABULARY: corpus.vocabulary.save,
        MODEL: lambda path: save_architecture(path, shape),
    }
    run = fit(task, config.train, config, name=name, baselines=baselines, files=files)
    if jax.process_index() == 0:
        report(config, run, corpus, baselines)
    return run


def report(config: Config, run: Run, corpus: Corpus, baselines: dict[str, float]) -> None:
    """Print how the run compares, some of its text, and where everything is."""
    result = run.result
    shown = "DEQ" if config.solves else config.model
    print(f"\nheld-out perplexity, every one of {len(corpus.valid):,} tokens scored:")
    for name, value in [*baselines.items(), (shown, result["valid_perplexity"])]:
        print(f"  {name:<8} {value:8.2f}")
    margin = baselines["bigram"] / result["valid_perplexity"]
    side = f"{margin:.2f} times below" if margin >= 1 else f"{1 / margin:.2f} times above"
    print(f"  the {shown} is {side} the bigram model (Kneser-Ney)")
    if "final_converged" in result:
        print(
            f"solves: {result['final_forward_steps']:.1f} forward and "
            f"{result.get('final_adjoint_steps', 0):.1f} adjoint steps a batch, "
            f"{result['final_converged']:.0%} of samples converged, over the last tenth of training"
        )
    prompt = corpus.valid[:32]
    decode = corpus.vocabulary.decode
    if config.memory:
        text = decode(sample(run.model, prompt, 300))
        (run.directory / "sample.txt").write_text(decode(prompt) + text)
        print(f"\na sample:\n{decode(prompt)}|{text}\n")
    print(f"{result['seconds']:.0f} s in all. Everything is in {run.directory}/ :")
    print("  result.json  metrics.jsonl  curves.png  sample.txt  config.json  checkpoints/")
