"""How each library names the layers of a model, and the maps between these names."""
