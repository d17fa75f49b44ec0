"""Scores to meaning: metrics, intervals, tables, reports.  Imports no model."""
