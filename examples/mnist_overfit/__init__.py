"""Classification of digits, some of whose labels are random."""
