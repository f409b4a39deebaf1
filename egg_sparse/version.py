"""The version of this package, readable without importing torch."""

__version__ = "0.1.0"
