"""The copy-memory task of the DEQ paper (Bai et al. 2019, Table 1), row by row.

    python -m experiments.copy_memory --model deq-transformer --length 400 --preset paper

The paper's cross-entropy at length 400: DEQ-Transformer 3.5e-6, TCN 2.7e-5, LSTM 0.0501,
GRU 0.0491. A model without memory scores 0.0495.
"""

from deqjax.training import command_line

from . import Config, main, recipe

if __name__ == "__main__":
    command_line(Config, main, defaults=recipe)
