"""Tests of the package; helpers in `support`, slow and obvious twins in `reference`."""
