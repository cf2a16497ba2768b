"""A user's own day: typed, JSON or calendar."""
