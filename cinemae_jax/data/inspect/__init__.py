"""What is wrong with a data set, from its files alone.  Imports no JAX."""
