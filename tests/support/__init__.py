"""Helpers of the tests: made-up stores, tiny runs and sweeps, a server, the command line."""
