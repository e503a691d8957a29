"""Penalty, spectra and optimisers in other people's trainers; questions and judges in Inspect."""
