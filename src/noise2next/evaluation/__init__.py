"""Streaming ranking, metrics, significance, the leaderboard."""
