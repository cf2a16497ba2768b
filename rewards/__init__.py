"""Judging one answer: parse it, verify it, reward it. One definition of validity for all stages."""

import data  # noqa: F401  (Ctrl-C while a stage is imported)
