"""Naming the class of digits that only the sender sees."""
