"""Words that a latent adds to responses and removes from them, from any log, without a model.

Text is cut into words (split.py) and counted (corpus.py); each arm is compared with the baseline
(compare.py: log odds in odds.py, tests in significance.py); `find_words` (run.py) does all of it
and returns `WordsResult` (result.py).
"""

from circuits.replay.words.compare import Comparison, Rules, compare
from circuits.replay.words.corpus import Corpus, count, read_corpus
from circuits.replay.words.odds import WordsError
from circuits.replay.words.result import WordsResult, write_original
from circuits.replay.words.run import find_words
from circuits.replay.words.split import SplitError, Splitter, WordOptions

__all__ = [
    "Comparison",
    "Corpus",
    "Rules",
    "SplitError",
    "Splitter",
    "WordOptions",
    "WordsError",
    "WordsResult",
    "compare",
    "count",
    "find_words",
    "read_corpus",
    "write_original",
]
