"""Beside a running training: its signals, val problems, progress and log."""
