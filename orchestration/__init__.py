"""Dagster's doorway: the same stages as the command line, as assets with checks, plots and a history."""

import sys
from importlib.machinery import ModuleSpec

# Dagster runs in spawned processes, whose main module has neither file nor spec. pyspark, which Great Expectations
# imports where it is installed, takes such a process for one of its own doctests and ends it with exit code 0.
_main = sys.modules["__main__"]
if _main.__spec__ is None and not hasattr(_main, "__file__"):
    _main.__spec__ = ModuleSpec("__main__", None)
