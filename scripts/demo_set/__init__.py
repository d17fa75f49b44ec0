"""Rebuild the demonstration images; ``scripts/build_demo_set.py`` is the way in."""
