"""Benchmarks: ``python -m benchmarks [--only NAME] [--json FILE]``."""
