"""Waiting for other processes."""

import time


def wait_for(condition, seconds=120):
    """Waits until a condition holds; fails where that takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
