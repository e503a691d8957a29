"""Statistics on tables of runs: design, variance, loss, flatness, stability, and sentences on them.

Pure functions on pandas frames; no torch. `analyse.analyse` is the entry; docs/statistics.md
explains every number.
"""
