"""Several senders and receivers, a random pair of which plays each batch."""
