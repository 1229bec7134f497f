"""Flax NNX modules on top of `deqjax.fixed_point`. `deqjax.nn.linen` adapts it to Linen."""

from .adaptive import AdaptiveEmbedding as AdaptiveEmbedding
from .adaptive import AdaptiveSoftmax as AdaptiveSoftmax
from .deq import DEQ as DEQ
from .deq import SAFEGUARDED as SAFEGUARDED
from .implicit_dense import ImplicitDense as ImplicitDense
from .language_model import LanguageModel as LanguageModel
from .language_model import LanguageModelOutput as LanguageModelOutput
from .log_likelihood import cross_entropy as cross_entropy
from .lstm import LSTMLanguageModel as LSTMLanguageModel
from .neural_ode import NeuralODE as NeuralODE
from .optnet import OptNet as OptNet
from .prelude import Prelude as Prelude
from .recurrent import Recurrent as Recurrent
from .satnet import SATNet as SATNet
from .scanned import NarrowScannedStack as NarrowScannedStack
from .scanned import ScannedStack as ScannedStack
from .stack import CellStack as CellStack
from .stack import NarrowStack as NarrowStack
from .tcn import TCN as TCN
from .transformer import Memory as Memory
from .transformer import TransformerCell as TransformerCell
from .transformer import TransformerInput as TransformerInput
from .transformer import forget as forget
from .trellis import TrellisCell as TrellisCell
from .weight_norm import WeightNormLinear as WeightNormLinear
