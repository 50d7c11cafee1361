"""Measures event -> learned, by part, beside another checkout: python -m loadtests.bench_freshness."""
