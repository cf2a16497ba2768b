"""Answers of models: asked for, stored, read, judged, scored by likelihood."""
