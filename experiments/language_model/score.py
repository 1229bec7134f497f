"""Score a trained language model on held-out text, at any solver setting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deqjax._options import choose
from deqjax.data import Corpus, Vocabulary
from deqjax.training import LanguageModelling, OptionError, load_model, read_config

from . import results, trade
from .config import Config
from .task import VOCABULARY, prepare


class Loaded(NamedTuple):
    """A run's options, its text, its task, and its model in eval mode."""

    config: Config
    corpus: Corpus
    task: LanguageModelling
    model: Any


def load(run: Path, data_dir: Path | None, which: Literal["latest", "best"] = "latest") -> Loaded:
    """What a run's folder holds, with its newest good checkpoint or its best one."""
    if not (run / "config.json").exists():
        raise OptionError(f"{run} holds no run: train one with experiments.language_model")
    config = read_config(Config, run)
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    saved = run / VOCABULARY
    tuned = config.train.init_from is not None and saved.exists()
    corpus, task = prepare(config, Vocabulary.load(saved) if tuned else None)
    if saved.exists() and Vocabulary.load(saved).fingerprint != corpus.vocabulary.fingerprint:
        raise OptionError(
            f"the text in {config.data_dir} gives another vocabulary than the one that {run} was "
            "trained with: give --data-dir of the same text"
        )
    return Loaded(config, corpus, task, load_model(task, config.train, run, which))


def main(
    run: Path,
    data_dir: Path | None = None,
    *,
    which: Literal["latest", "best"] = "latest",
    split: str = "test",
    tokens: int | None = None,
    rows: int | None = None,
    table: bool = False,
    record: bool = False,
    **solver: Any,
) -> list[trade.Line]:
    """Print perplexity at the setting of training, or that of `solver`; and the whole table."""
    config, corpus, task, model = load(run, data_dir, which)
    if rows is not None:
        config = dataclasses.replace(config, eval_rows=rows)
    given = {k: v for k, v in solver.items() if v is not None}
    if given and not model.solves:
        raise OptionError(f"{config.model} solves nothing: --{next(iter(given))} has no effect")
    limit = "as trained"
    if given:
        try:
            chosen = choose(adjoint="jfb", **{"solver": model.deq.solver, **given})[0]
        except (TypeError, ValueError) as wrong:
            raise OptionError(str(wrong)) from None
        model.deq.solver, limit = chosen, "as asked"
    ids = getattr(corpus, split)[:tokens]
    print(f"{run.name}, {split}, {len(ids):,} tokens in {config.eval_rows} rows\n{trade.HEADER}")
    lines = [trade.score(config, corpus, model, ids, limit)]
    print(lines[0], flush=True)
    if table and config.model not in ("transformer-xl", "lstm"):
        for line in trade.table(config, corpus, model, ids):
            print(line, flush=True)
            lines.append(line)
        name = f"trade-{split}"
        (run / f"{name}.json").write_text(json.dumps([x._asdict() for x in lines], indent=1) + "\n")
        trade.plot(lines, run / f"{name}.png", f"{run.name}: solver steps traded for perplexity")
        print(f"picture: {run / name}.png")
    if record:
        if given or tokens is not None or split != "test" or which != "latest":
            raise OptionError(
                "--record keeps the score of the whole test text by the end of training, as trained"
            )
        print(f"recorded: {results.record(run, config, task, lines[0])}")
    return lines
