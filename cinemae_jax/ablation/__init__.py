"""Tables of runs that differ in a field or two."""
