"""Text corpora, vocabularies and streams for language models, count-based baselines, and the
copy-memory task. Everything here is numpy; `datasets` is imported only when a file is read."""

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
from .vocabulary import Level as Level
from .vocabulary import Vocabulary as Vocabulary
