"""Dagster's doorway: the same stages as the command line, as assets with checks, plots and a history."""
