"""Mixtures of experts: `mixture.py` is where to start."""
