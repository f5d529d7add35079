"""vidssl: self-supervised video representation learning that is not fooled by the background."""

__version__ = "0.1.0"
