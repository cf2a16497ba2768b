"""Shared by every package: errors, files, locks, processes, checked settings, the terminal."""
