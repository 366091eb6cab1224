"""Short fits and estimates that `versions.py` runs in each of two checkouts. Works with the public names of both."""
