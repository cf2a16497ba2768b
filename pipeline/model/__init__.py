"""A language model: load it, ask it, count its tokens, score a text."""
