"""Rebuilding an object, or finding it among others, from a sequence of symbols."""
