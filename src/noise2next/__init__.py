"""Diffusion recommenders, from a raw interaction log to a promoted model."""

import os

# Read by OpenMP when torch loads: threads that wait give their core away. Otherwise they spin, and one busy neighbour
# on a small machine makes training many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
