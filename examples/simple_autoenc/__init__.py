"""An autoencoder of one-hot vectors whose code is one symbol."""
