"""From raw files to arrays: sources, ingestion, contract, preparation, splits, weights, vocabularies, queries."""

import sys
from importlib.machinery import ModuleSpec

# Great Expectations imports pyspark where that is installed. A process whose main module has neither file nor spec, as
# a spawned one, is then taken for pyspark's own doctests and ended with exit code 0; one with a prompt is not.
_main = sys.modules["__main__"]
if _main.__spec__ is None and not hasattr(_main, "__file__") and not hasattr(sys, "ps1"):
    _main.__spec__ = ModuleSpec("__main__", None)
