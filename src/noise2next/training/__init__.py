"""The one loop, its checkpoints, its seeds."""
