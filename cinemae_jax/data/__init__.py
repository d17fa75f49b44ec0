"""Files to arrays: catalogs, decoding, loading.  Imports no JAX."""
