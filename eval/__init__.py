"""Evaluation: sample answers from each model, judge them, count, and say what RL did."""
