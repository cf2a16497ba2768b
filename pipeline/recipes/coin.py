"""A reward that knows nothing: the control of arXiv 2506.10947."""

from data.common.seeds import seed_of
from data.problem import Problem
from rewards.verify import Verdict


def coin(problem: Problem, verdict: Verdict) -> int:
    """Heads or tails, one throw for each problem and verdict, so the same whenever it is asked."""
    return seed_of(problem.text, *map(str, verdict.to_json().values())) % 2
