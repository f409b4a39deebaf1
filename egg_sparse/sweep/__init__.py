"""Sweeps: an experiment over a grid of options, in local processes or on SLURM."""
