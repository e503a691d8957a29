"""Statistics on tables of runs: what a design can tell, shares of variance, loss and outcome, flatness, stability, and sentences on it all.

Pure functions on pandas frames; no torch. `analyse` is the one entry, docs/statistics.md says what every number is.
"""

from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.whole import analyse

__all__ = ["Analysis", "Sentence", "analyse"]
