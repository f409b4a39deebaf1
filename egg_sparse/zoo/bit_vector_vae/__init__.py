"""The bit-vector VAE: an image is sent as D bits, and decoded to grey levels."""
