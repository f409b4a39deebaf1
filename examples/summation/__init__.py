"""Telling whether a string has as many a as b."""
