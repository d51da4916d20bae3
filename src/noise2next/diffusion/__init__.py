"""Schedules, the Gaussian process, step sampling: mathematics that knows no network."""
