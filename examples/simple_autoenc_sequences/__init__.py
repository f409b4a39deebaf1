"""An autoencoder of one-hot vectors whose code is a sequence of symbols."""
