"""Scheduling problems: what they are, how they are made, and what their proven optimum is."""
