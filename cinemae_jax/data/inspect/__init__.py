"""Finds problems in a data set from its files alone.  Imports no JAX."""
