"""A trained detector: on disk, in memory, and for people."""
