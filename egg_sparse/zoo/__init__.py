"""The experiments of the paper, each a folder that reads from top to bottom and has a ``main(params)``."""
