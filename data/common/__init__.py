"""Shared by every package: errors, files, locks, checked settings, the terminal."""
