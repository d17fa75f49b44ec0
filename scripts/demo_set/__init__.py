"""Rebuild the demonstration images; run ``scripts/build_demo_set.py``."""
