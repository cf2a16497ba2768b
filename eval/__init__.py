"""Evaluation: sample answers from each model, judge them, count, and say what RL did."""

import data  # noqa: F401  (Ctrl-C while a stage is imported)
