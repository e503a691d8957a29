"""The project inside other people's: the penalty, the spectra and the optimisers in trainers, the
questions and judges in Inspect.
"""
