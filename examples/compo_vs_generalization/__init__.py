"""Describing combinations of attributes, of which some are new."""
