"""Scores, benchmarks and reports."""
