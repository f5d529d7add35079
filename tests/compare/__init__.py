"""Comparisons of ours with other people's loaders and with the forms of the papers' releases: `make compare`."""
