"""Files to arrays: catalogs, decoding, batches.  Imports no JAX."""
