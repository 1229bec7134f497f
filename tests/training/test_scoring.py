"""What every process scores, and what it comes to together."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from deqjax.data import Stream
from deqjax.nn import LSTMLanguageModel
from deqjax.training import perplexity
from deqjax.training.scoring import Share, current, sharing

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run

IDS = np.random.default_rng(1).integers(0, tiny_run.VOCABULARY, 40).astype(np.int32)


@dataclass
class Other:
    """One of several processes, that hears of its own part only."""

    index: int
    count: int

    def agree(self, work, decide):
        return decide([work()])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_parts_come_to_the_whole(count):
    model = LSTMLanguageModel(tiny_run.VOCABULARY, width=4, hidden=4, rngs=nnx.Rngs(0))
    stream = Stream(IDS, batch_size=4, segment=3, start_id=0)
    whole, parts = perplexity(model, stream), []
    for k in range(count):
        with sharing(Share(Other(k, count))):
            parts.append(perplexity(model, stream))
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)
    # Six processes share four rows: two have none.
    assert sum(part.tokens == 0 for part in parts) == max(0, count - 4)
    assert current() == Share()


def test_a_share_ends_with_what_goes_wrong():
    with pytest.raises(ZeroDivisionError), sharing(Share(Other(0, 2))):
        raise ZeroDivisionError
    assert current() == Share()
