"""Judging one answer: parse it, verify it, reward it. One definition of validity for all stages."""
