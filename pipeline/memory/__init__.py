"""How much memory a model, its training and its sampling need. No torch."""
