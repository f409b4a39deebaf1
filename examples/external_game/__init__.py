"""Naming the class of vectors that come from a file."""
