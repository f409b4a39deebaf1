"""Telling an object from distractors."""
