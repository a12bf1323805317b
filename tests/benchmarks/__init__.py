"""Measurements, run by hand: `python -m tests.benchmarks.NAME`. Not tests: they always end well."""
