"""How much memory and time a model, its training and its sampling need. No torch."""
