"""Pure functions and Flax modules on arrays: no files, no devices, no data sets."""
