"""Benchmarks of speed and memory; ``python -m benchmarks`` runs them and saves their tables."""
