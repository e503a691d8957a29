"""Helpers of the tests: made-up stores, tiny runs and sweeps, imitation servers, the command line."""
