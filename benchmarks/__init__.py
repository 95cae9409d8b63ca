"""Measurements of mentis_pool beside other ways to run code: ``python -m benchmarks``."""
