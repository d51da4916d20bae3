"""Diffusion recommenders, from a raw interaction log to a promoted model."""

__version__ = "0.1.0"
