"""The penalty, the spectra and the optimisers inside other people's trainers."""
