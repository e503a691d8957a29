"""Rates of misaligned answers: three definitions, comparisons, calibration of a judge."""
