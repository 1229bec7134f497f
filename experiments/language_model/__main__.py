"""A causal language model, trained through the implicit function theorem or layer by layer.

python -m experiments.language_model                         # real text that Python ships
python -m experiments.language_model --preset ptb --data-dir path/to/ptb --model deq-trellisnet
"""

from deqjax.training import command_line

from . import Config, main, recipe

if __name__ == "__main__":
    command_line(Config, main, defaults=recipe)
