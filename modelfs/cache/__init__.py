"""Bounded memory for what a worker has verified."""
