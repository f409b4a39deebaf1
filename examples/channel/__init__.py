"""An autoencoder of concepts that are not equally frequent, whose code is a sequence of symbols."""
