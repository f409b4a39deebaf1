"""The semi-supervised VAE: a class is the message, and most images come without one."""
