"""Penalty, spectra and optimisers for other trainers; questions and judges for Inspect."""
