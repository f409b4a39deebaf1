"""The signal game: a sender names one of several images, a receiver finds it by the name."""
