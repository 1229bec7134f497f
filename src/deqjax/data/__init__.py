"""Text corpora, vocabularies and streams for language models, count-based baselines, the
copy-memory task and Sudoku. Everything here is numpy; `datasets` is imported only when a file of
text is read."""

from .copy_memory import copy_memory as copy_memory
from .copy_memory import memoryless_loss as memoryless_loss
from .corpora import CORPORA as CORPORA
from .corpora import Corpus as Corpus
from .corpora import load_corpus as load_corpus
from .ngram import KneserNey as KneserNey
from .ngram import bigram_perplexity as bigram_perplexity
from .ngram import unigram_perplexity as unigram_perplexity
from .ngram import unigram_probability as unigram_probability
from .python_docs import python_docs as python_docs
from .streams import Batch as Batch
from .streams import Stream as Stream
from .sudoku import Boards as Boards
from .sudoku import Split as Split
from .sudoku import from_one_hot as from_one_hot
from .sudoku import given_mask as given_mask
from .sudoku import is_solution as is_solution
from .sudoku import load_sudoku as load_sudoku
from .sudoku import one_hot as one_hot
from .sudoku import split_boards as split_boards
from .sudoku import split_by_solution as split_by_solution
from .vocabulary import Level as Level
from .vocabulary import Vocabulary as Vocabulary
