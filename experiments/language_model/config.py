"""The options of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deqjax._errors import check_integer
from deqjax.training import PLACE_OF_DATA, OptionError, PenaltyOptions, SolverOptions, TrainOptions

Model = Literal[
    "deq-transformer",
    "universal-transformer",
    "transformer-xl",
    "deq-trellisnet",
    "trellisnet",
    "lstm",
]
Preset = Literal[
    "quick",
    "ptb",
    "wikitext-2",
    "ptb-paper-trellisnet",
    "ptb-paper-transformer",
    "ptb-paper-transformer-xl",
    "ptb-paper-trellisnet-short",
    "ptb-paper-transformer-short",
    "ptb-paper-transformer-xl-short",
]


@dataclass(frozen=True)
class RecipeOptions:
    """What is trained, and how where no flag says otherwise."""

    model: Model = "deq-transformer"
    """the two with deq- solve for an equilibrium; universal-transformer and trellisnet stack the
    same cells; transformer-xl has distinct layers"""
    preset: Preset = "quick"
    """data and training where no flag says otherwise; all but quick need --data-dir. The ones
    called paper have the paper's size, 24M parameters, and name their model: they are for a GPU"""


@dataclass(frozen=True)
class DataOptions:
    """The text."""

    dataset: str = "python-docs"
    """python-docs, ptb, wikitext-2, wikitext-103 or text"""
    data_dir: Path | None = field(default=None, metadata=PLACE_OF_DATA)
    """folder with the data set's files; not for python-docs"""
    level: str | None = None
    """char or word; the data set's own if not given"""
    segment: int = 64
    """tokens in a training segment"""
    memory: int = 64
    """positions of the previous segments that attention still sees"""
    eval_rows: int = 8
    """rows that held-out text is scored in, side by side; fewer rows, more context"""


@dataclass(frozen=True)
class NetworkOptions:
    """What the network is made of."""

    width: int = 128
    """width of the embedding, and of a transformer's state"""
    heads: int = 4
    """attention heads"""
    inner: int = 256
    """width of a transformer's feed-forward"""
    hidden: int = 256
    """width of a trellisnet's h and of an lstm's layers"""
    blocks: int = 2
    """transformer blocks in the cell of deq-transformer and universal-transformer"""
    layers: int = 12
    """layers of transformer-xl and lstm"""
    depth: int = 12
    """how often universal-transformer and trellisnet apply their cell"""
    prelude: int = 1
    """explicit layers before the equilibrium, or before universal-transformer's stack"""
    norm: Literal["post", "pre"] = "pre"
    """layer norm of a transformer after or before attention and feed-forward"""
    injection: Literal["qkv", "state"] = "state"
    """how the input enters the cell of deq-transformer and universal-transformer: added to q, k and
    v by weights of its own, or to the state"""
    weight_norm: bool = False
    """learn length and direction of a cell's matrices apart"""
    warm_start: bool = False
    """start each training solve at the equilibrium of the segment before it, not at zero"""
    learned_start: bool = False
    """learn where solves begin, from the input"""


@dataclass(frozen=True)
class VocabularyOptions:
    """Embedding and softmax of many words."""

    cutoffs: tuple[int, ...] = ()
    """first words of the rarer clusters of an adaptive embedding and softmax, such as 2000 6000"""
    divisor: int = 1
    """how many times narrower an adaptive embedding gets from cluster to cluster"""
    softmax_chunk: int | None = None
    """positions whose logits a training step holds at a time, all of them if not given (512 with
    an adaptive softmax): less memory, and a gradient that computes each chunk again"""


@dataclass(frozen=True)
class DropoutOptions:
    """What training leaves out at random."""

    dropout: float = 0.0
    """rate of variational dropout inside a cell, or between the layers of an lstm"""
    dropout_in: float | None = None
    """the same on the embedded input; that of --dropout if not given"""
    dropout_out: float | None = None
    """the same on the output; that of --dropout if not given"""
    dropout_words: float = 0.0
    """rate at which whole words are left out of the input"""
    weight_drop: float = 0.0
    """rate at which recurrent weights of trellisnets and lstm are dropped"""


@dataclass(frozen=True)
class CostOptions:
    """What a step costs, at the same result."""

    remat: Literal["none", "all", "sqrt"] = "none"
    """what back-propagation through layers or applications keeps: everything; or (all, for
    transformer-xl) what lies between layers; or (sqrt) the square root of those"""
    chunk_size: int | None = None
    """positions that a transformer computes at a time, all of them if not given: less memory, and
    a gradient that computes each chunk again"""
    scan: bool = False
    """layers of transformer-xl, or applications of a stack, as a loop over one of them: compiles in
    the time of one"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the cell; state, residuals and solver are float32"""


@dataclass(frozen=True)
class Config(
    RecipeOptions,
    DataOptions,
    NetworkOptions,
    VocabularyOptions,
    DropoutOptions,
    CostOptions,
):
    """Train a language model."""

    solver: SolverOptions = field(default_factory=lambda: SolverOptions(rtol=5e-3))
    penalties: PenaltyOptions = field(default_factory=PenaltyOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    @property
    def solves(self) -> bool:
        return self.model.startswith("deq-")

    def check(self) -> None:
        for name in ("segment", "width", "heads", "inner", "hidden", "blocks", "layers", "depth"):
            check_integer(f"--{name}", getattr(self, name), least=1)
        check_integer("--memory", self.memory, least=0)
        check_integer("--eval-rows", self.eval_rows, least=1)
        check_integer("--chunk-size", self.chunk_size, least=1, optional=True)
        check_integer("--softmax-chunk", self.softmax_chunk, least=1, optional=True)
        if self.softmax_chunk is not None and (self.model == "lstm" or self.dropout_words):
            raise OptionError("--softmax-chunk is not for lstm, nor for --dropout-words")
        if self.chunk_size is not None and "transformer" not in self.model:
            raise OptionError("--chunk-size is for the transformers")
        check_integer("--prelude", self.prelude, least=0)
        tied = self.model in ("deq-transformer", "universal-transformer")
        if not tied and (self.prelude or self.injection != "qkv"):
            raise OptionError(
                "--prelude and --injection state are for deq-transformer and universal-transformer"
            )
        if self.scan and self.model == "lstm":
            raise OptionError("--scan is for transformers and trellisnets")
        if self.scan and self.model == "transformer-xl" and self.remat == "sqrt":
            raise OptionError("--scan goes with --remat none or all")
        if self.remat == "all" and self.model != "transformer-xl":
            raise OptionError("--remat all is for transformer-xl; there is sqrt for a stack")
        if not self.solves:
            for name in ("warm_start", "learned_start"):
                if getattr(self, name):
                    flag = "--" + name.replace("_", "-")
                    raise OptionError(f"{flag} is for deq-transformer and deq-trellisnet")
            if self.train.stack_steps or self.penalties.jacobian:
                raise OptionError(
                    "--stack-steps and --jacobian are for deq-transformer and deq-trellisnet"
                )
