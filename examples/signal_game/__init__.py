"""Telling a target image from distractors."""
