"""Beside a running training: its signals, val problems, live view and log."""
