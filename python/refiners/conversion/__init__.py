"""Weights of other libraries, converted to ours. Importing this package needs no optional dependency."""
