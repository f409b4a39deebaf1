"""An autoencoder of digits whose code is one symbol."""
