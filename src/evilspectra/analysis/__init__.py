"""Statistics on tables of runs: what a design can tell, shares of variance, loss and outcome, flatness, stability, and sentences on it all.

Pure functions on pandas frames; no torch. `analyse.analyse` is the entry; docs/statistics.md says what every number is.
"""
