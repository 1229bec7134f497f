"""The Penn Treebank at the paper's size, 24M parameters: for a GPU.

`ptb-paper-trellisnet` has the sizes, the regularisation and the optimiser that are published for
DEQ-TrellisNet on this corpus (Bai, Kolter and Koltun 2019, arXiv 1909.01377, table 2 and released
code; test perplexity 57.1). For the two transformers only the number of parameters is (24M, and
54.5 for Transformer-XL; Dai et al. 2019, arXiv 1901.02860): widths are derived from it, dropout is
TrellisNet's but for the layers of Transformer-XL, and the schedule is a usual one for them.

The presets that end in `-short` are the same models and dropout with a schedule that a GPU ends
within minutes: AdamW and a cosine instead of SGD until nothing improves. `python -m
experiments.gpu --part penn` sets their number of steps by the rate that it measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deqjax.training import PenaltyOptions, SolverOptions, TrainOptions

BATCH, SEGMENT = 16, 110  # published for TrellisNet
EPOCH = 528  # steps: 929,589 words in batches of 16 x 110

_SOLVER = SolverOptions(rtol=1e-2, max_steps=24)
_LONG = TrainOptions(
    steps=200 * EPOCH,
    batch_size=BATCH,
    eval_every=EPOCH,
    checkpoint_every=EPOCH,
    log_every=20,
)
_SGD = replace(
    _LONG,
    optimiser="sgd",
    learning_rate=20.0,
    schedule="plateau",
    learning_rate_end=1e-3,
    plateau_patience=5,
    weight_decay=1.2e-6,
    clip=0.225,
    stack_steps=24 * EPOCH,
    stack_jitter=2,
)
_COSINE = replace(_LONG, learning_rate=5e-4, warmup=2 * EPOCH, weight_decay=0.02, clip=0.25)

_ALL: dict[str, Any] = dict(
    dataset="ptb",
    segment=SEGMENT,
    injection="qkv",
    prelude=0,
    dropout=0.28,
    dropout_in=0.45,
    dropout_out=0.45,
    dropout_words=0.1,
    weight_norm=True,
    solver=_SOLVER,
)
_TRANSFORMER: dict[str, Any] = _ALL | dict(width=380, heads=10, memory=SEGMENT, train=_COSINE)

PAPER: dict[str, dict[str, Any]] = {
    "ptb-paper-trellisnet": _ALL
    | dict(
        model="deq-trellisnet",
        width=400,
        hidden=1400,
        memory=1,
        weight_drop=0.5,
        penalties=PenaltyOptions(activation=2.0, temporal=1.0),
        train=_SGD,
    ),
    # One post-LN block, as in the paper; 8 d² + 2 d · inner weights besides the words.
    "ptb-paper-transformer": _TRANSFORMER
    | dict(
        model="deq-transformer",
        blocks=1,
        norm="post",
        inner=25_000,
        train=replace(_COSINE, stack_steps=24 * EPOCH, stack_jitter=2),
    ),
    # 12 (5 d² + 2 d · inner); pre-LN, since post-LN layers do not train at this learning rate.
    "ptb-paper-transformer-xl": _TRANSFORMER
    | dict(model="transformer-xl", layers=12, inner=1265, norm="pre", weight_norm=False, scan=True),
}


def short(config: dict[str, Any], steps: int = 6 * EPOCH) -> dict[str, Any]:
    """The same model on a schedule of so many steps."""
    solves = config["model"].startswith("deq-")
    train = replace(
        _COSINE,
        steps=steps,
        learning_rate=1e-3,
        warmup=max(1, steps // 20),
        # What an equilibrium becomes is learnt by a stack first, at a third of the price.
        stack_steps=steps // 2 if solves else 0,
        stack_jitter=2 if solves else 0,
        eval_every=max(1, steps // 12),
        checkpoint_every=max(1, steps // 12),
    )
    return config | dict(train=train)


PAPER |= {f"{name}-short": short(config) for name, config in list(PAPER.items())}
for _name in PAPER:
    PAPER[_name] = PAPER[_name] | dict(preset=_name)
