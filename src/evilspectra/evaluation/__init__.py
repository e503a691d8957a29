"""Measurement of adapters: probes, answers and rates, and their summaries."""
