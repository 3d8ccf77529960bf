"""Models, one folder per family; an adapter is a module next to the model it targets."""
