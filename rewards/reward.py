"""Verdict to named components to one number: the shapes of the reward, and how TRL calls them.

GRPO needs nothing but a prompt and a deterministic reward. Every shape but the published one is a
function of the verdict, never a second judgement of the text, so what training pays for is what
evaluation counts; ``reasoned`` pays for true reasoning beside it. Whether a shape can be gamed is
measured by ``rewards.audit``.

Under every shape TRL is handed the functions that are paid and, with weight 0, the components that
are not: the truth stands beside the reward in the log. It also keeps TRL from setting aside an
answer to which no paid component applies: ``format`` applies to all of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isfunction
from math import isfinite
from pathlib import Path
from typing import Any

from data.common.errors import UserError, brief, reason_of, require
from data.common.fields import check_keys, nearest
from data.event import Event
from data.problem import Problem, problem_from_text
from data.prompts import answer
from data.sections import RewardSection
from data.solver import is_computable
from rewards import blog
from rewards.claims import check_trace
from rewards.parse import parse
from rewards.verify import VALID, Status, Verdict, verify_text

#: None where a component does not apply: TRL counts 0 in the sum, and nothing in the mean it logs.
Component = Callable[[Verdict], float | None]
#: As TRL calls it: completions, the dataset column ``problem`` (a JSON string or object), and more.
RewardFunction = Callable[..., list[float | None]]

#: The problem on which a function of one's own is tried before anything runs.
_SOME = Problem((Event(540, 600, "Tea"),), (), optimum=60)
_WORST_FIRST = tuple(reversed(Status))


def format(verdict: Verdict) -> float | None:
    """1 when a schedule could be read."""
    return float(verdict.status != Status.UNPARSABLE)


def validity(verdict: Verdict) -> float | None:
    """1 when there is a schedule and it breaks no rule."""
    return float(verdict.status in VALID)


def ratio(verdict: Verdict) -> float | None:
    """Weighted minutes over the optimum; None unless the schedule breaks no rule."""
    return verdict.ratio if verdict.status in VALID else None


def optimal(verdict: Verdict) -> float | None:
    """1 when nothing better exists: what evaluation counts as success."""
    return float(verdict.status == Status.OPTIMAL)


COMPONENTS: dict[str, Component] = {f.__name__: f for f in (format, validity, ratio, optimal)}


@dataclass(frozen=True)
class Shape:
    """One way to make a number of an answer.

    Attributes:
        about: what it is good and bad at.
        weights: of the functions that it pays for.
        in_group: whether an answer is paid by comparison with others to the same problem.
        varied: whether of two optimal answers one may be paid more, for its being rarer.
    """

    about: str
    weights: Mapping[str, float]
    in_group: bool = False
    varied: bool = False


SHAPES: dict[str, Shape] = {
    "binary": Shape(
        "Optimal or not. Nothing else can be farmed, but a group without an optimal answer teaches "
        "nothing, and early on most groups are such.",
        {"optimal": 1.0},
    ),
    "graded": Shape(
        "A weighted sum of the components, monotone in the verdict. It teaches from the first "
        "step, but a short safe answer collects the steps between.",
        {"format": 0.05, "validity": 0.15, "ratio": 0.2, "optimal": 0.6},
    ),
    "ranked": Shape(
        "The share of its group that an answer beats by verdict (status, then ratio), ties half. "
        "No weights to get wrong, but the best of a bad group earns as much as that of a good one.",
        {"ranked": 1.0},
        in_group=True,
    ),
    "passk": Shape(
        "A right answer earns the chance that k - 1 others to its problem are all wrong. It keeps "
        "what seldom succeeds, but teaches little where most answers are right already.",
        {"passk": 1.0},
        in_group=True,
    ),
    "rare": Shape(
        "A right answer earns 1, less half the share of its group's others that are the same "
        "schedule. It keeps several optima alive, but many a problem has only one.",
        {"rare": 1.0},
        in_group=True,
        varied=True,
    ),
    "reasoned": Shape(
        "Half for the optimum, half for reasoning that leads to it in true claims alone. It keeps "
        "reasoning true that the optimum alone lets drift, but needs claims that can be checked.",
        {"optimal": 0.5, "derived": 0.5},
    ),
    "blog": Shape(
        "The published reward, of 100, for comparison only. It is dense, but judges the text a "
        "second time, unlike the evaluation, and can be gamed; see rewards/blog.py.",
        dict.fromkeys(blog.REWARDS, 1.0),
    ),
}


def check_reward(section: RewardSection, source: str) -> None:
    """Raise UserError, naming ``source`` and the key, where a reward cannot be what it says.

    Weights of 0 or more are all it takes for a graded reward to be monotone, since every component
    is: no infeasible answer earns more than a feasible one, no feasible one more than a better one.
    """
    if section.function is not None:
        require(
            section.weights is None and section.shape == RewardSection.shape,
            f"{source}: reward.function is instead of a shape and weights; leave them out",
        )
        try:
            _by_own(section.function)([_SOME.text] * 2, ["", answer(_SOME.events, None)])
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    require(
        section.shape in SHAPES,
        f"{source}: unknown reward.shape {section.shape!r} (the shapes are {', '.join(SHAPES)})"
        f"{nearest(section.shape, SHAPES)}",
    )
    require(
        section.shape == "passk" or section.k == RewardSection.k,
        f"{source}: reward.k belongs to the shape 'passk', not to {section.shape!r}; leave it out",
    )
    if section.weights is None:
        return
    require(
        section.shape == "graded",
        f"{source}: reward.weights belong to the shape 'graded', not to {section.shape!r}; leave "
        "them out",
    )
    check_keys(section.weights, COMPONENTS, source, "reward.weights.")
    for name, weight in section.weights.items():
        require(
            weight >= 0,
            f"{source}: reward.weights.{name} must be 0 or more, not {weight!r}: below 0, a worse "
            "answer would earn more",
        )
    require(
        any(section.weights.values()),
        f"{source}: reward.weights needs a component with a weight above 0",
    )


def shape_of(name: str) -> Shape:
    """The shape of ``RewardSection.name``."""
    if ":" not in name:
        return SHAPES[name]
    own = _own_function(name)
    return Shape(own.__doc__ or "A function of the recipe's.", {own.__name__: 1.0})


@lru_cache
def _own_function(name: str) -> Callable[[Problem, Verdict], Any]:
    """The function that ``file.py:name`` names; the file is run. UserError where there is none, or
    it cannot stand beside the components."""
    file, _, function = name.rpartition(":")
    where = f"reward.function {name!r}"
    if not file:
        raise UserError(f"{where} names no function of a file; write my.py:name")
    spec = spec_from_file_location("reward_of_the_recipe", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"{where}: {file} is no Python file; write my.py:name")
    try:
        spec.loader.exec_module(module := module_from_spec(spec))
    except Exception as error:  # somebody's own file may run into anything
        raise UserError(f"{where}: {file} cannot be run: {_told(error)}") from None
    known = [key for key, value in vars(module).items() if isfunction(value)]
    require(function in known, f"{where}: {file} has no such function{nearest(function, known)}")
    require(function not in _FUNCTIONS, f"{where}: that is a name of ours; take another one")
    own: Callable[[Problem, Verdict], Any] = getattr(module, function)
    return own


def _told(error: Exception) -> str:
    return f"{type(error).__name__}, {reason_of(error)}"


def _each(pay: Callable[[str, str], float | None]) -> Callable[..., list[float | None]]:
    """Pays every answer by itself: a problem as its JSON string and a text -> a number, or None."""
    return lambda problems, texts: [pay(*pair) for pair in zip(problems, texts, strict=True)]


def _by_own(name: str) -> Callable[..., list[float | None]]:
    def paid(problem: str, text: str) -> float:
        own = _own_function(name)
        try:
            value = own(problem_from_text(problem), verify_text(problem, text))
        except Exception as error:  # so may the function
            why = f"reward.function {name!r} fails on a problem and a verdict"
            raise UserError(f"{why}: {_told(error)}") from None
        number = isinstance(value, int | float) and isfinite(value)
        require(number, f"reward.function {name!r} must return a number, not {value!r:.100}")
        return float(value)

    return _each(paid)


def _all_weights(section: RewardSection) -> dict[str, float]:
    """The weight of every function that TRL is handed, by name."""
    paid = section.weights or shape_of(section.name).weights
    return {**paid, **{name: 0.0 for name in COMPONENTS if name not in paid}}


def reward_weights(section: RewardSection) -> list[float]:
    """TRL's ``reward_weights``, in the order of ``reward_functions``."""
    return list(_all_weights(section).values())


def reward_functions(
    section: RewardSection, prefix: str = "", stops: Collection[int] = ()
) -> list[RewardFunction]:
    """TRL's reward functions, each of which it logs by its name and sums by its weight.

    Args:
        prefix: put before every completion: where a chat template opens the reasoning itself, the
            model's text begins inside it, and the verifier must see that.
        stops: the tokens that end an answer; without one of them it was cut off and is no answer.
    """

    def function(name: str) -> RewardFunction:
        def trl_reward(
            completions: Sequence[Any],
            problem: Sequence[str | Mapping[str, Any]],
            completion_ids: Sequence[Sequence[int]] = (),
            **_: Any,
        ) -> list[float | None]:
            texts = [prefix + text_of(completion) for completion in completions]
            for i, ids in enumerate(completion_ids if stops else ()):
                if not ids or ids[-1] not in stops:
                    texts[i] = ""
            problems = [one if isinstance(one, str) else json.dumps(one) for one in problem]
            judge = _FUNCTIONS.get(name) or _by_own(section.name)
            return (partial(judge, k=section.k) if name == "passk" else judge)(problems, texts)

        trl_reward.__name__ = name
        return trl_reward

    return [function(name) for name in _all_weights(section)]


def totals(
    section: RewardSection, problem_texts: Sequence[str], completions: Sequence[str]
) -> list[float]:
    """The totals that TRL trains on: weighted sums of the functions, None as 0."""
    columns = [f(completions, problem_texts) for f in reward_functions(section)]
    return summed(columns, reward_weights(section))


def summed(columns: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float]:
    """The weighted sum of what each function pays, by answer."""
    return [
        sum(w * v for w, v in zip(weights, values, strict=True) if v is not None)
        for values in zip(*columns, strict=True)
    ]


def text_of(completion: Any) -> str:
    """The text of a completion: a string, or the model's last message in a conversation, whose
    content may be parts of which the texts count.

    Raises:
        UserError: when it is neither.
    """
    if isinstance(completion, str):
        return completion
    turns = completion if isinstance(completion, list | tuple) else [completion]
    messages = (turn for turn in turns if isinstance(turn, Mapping))
    said = [turn for turn in messages if turn.get("role", "assistant") == "assistant"]
    content = said[-1].get("content") if said else None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "".join(text for text in parts if isinstance(text, str))
    if content is None and said:  # a call of a tool
        return ""
    require(isinstance(content, str), f"a text or a list of messages, not {brief(completion)}")
    return str(content)


def order(verdict: Verdict) -> tuple[int, float]:
    """Sort key of verdicts, worst first: status, then ratio."""
    return order_of(verdict.status, verdict.ratio)


def order_of(status: str, ratio: float) -> tuple[int, float]:
    """``order`` of a verdict that was written to a row."""
    return _WORST_FIRST.index(Status(status)), ratio


def _by_verdict(component: Component) -> Callable[..., list[float | None]]:
    return _each(lambda problem, text: component(verify_text(problem, text)))


_optimal = _by_verdict(optimal)


def _ranked(problems: Sequence[str], texts: Sequence[str]) -> list[float | None]:
    """(wins + half the ties) / (group - 1) among the answers to the same problem.

    An answer alone has nothing to be compared with and gets 0.5, what every group averages to;
    None would count as 0 in the sum, as if it had lost to all.
    """
    pairs = zip(problems, texts, strict=True)
    keys = [order(verify_text(problem, text)) for problem, text in pairs]
    groups: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for problem, key in zip(problems, keys, strict=True):
        groups[problem].append(key)

    def share(problem: str, key: tuple[int, float]) -> float:
        group = groups[problem]
        wins = sum(other < key for other in group)
        ties = group.count(key) - 1  # itself aside
        return (wins + ties / 2) / (len(group) - 1) if len(group) > 1 else 0.5

    return [share(problem, key) for problem, key in zip(problems, keys, strict=True)]


def _passk(problems: Sequence[str], texts: Sequence[str], k: int) -> list[float | None]:
    """(wrong / others) ** (k - 1) for a right answer of which so many of the others in its group
    are wrong, 0 for a wrong one; 1 for a right one alone.

    With p the chance of a right answer, pass@k is 1 - (1 - p)**k, and its gradient is k (1 - p)**(k
    - 1) times that of p: so much is a right answer worth (arXiv 2505.15201; as a reward of the
    group, arXiv 2508.10751). It is what the answer adds to the k - 1 others, so a wrong one earns
    nothing, and p is that of the others. They draw the k - 1 without replacement, C(wrong, k - 1) /
    C(others, k - 1); that is unbiased, but pays a right answer like a wrong one where fewer than
    k - 1 are wrong.

    Divided by the group's own spread, two values are those of ``binary`` again: ``scale_rewards:
    group`` is refused (``pipeline.train.settings``).
    """
    right = _optimal(problems, texts)
    answers = Counter(problems)
    solved = Counter(problem for problem, one in zip(problems, right, strict=True) if one)

    def worth(problem: str) -> float:
        others = answers[problem] - 1
        return ((answers[problem] - solved[problem]) / others) ** (k - 1) if others else 1.0

    return [one and worth(problem) for problem, one in zip(problems, right, strict=True)]


def _rare(problems: Sequence[str], texts: Sequence[str]) -> list[float | None]:
    """1 - same / (2 others) for a right answer, whose schedule ``same`` others have; else 0.

    Like arXiv 2509.02534 (distinct answers) and 2506.02355 (unlikely ones) it multiplies what is
    right; but the schedule alone tells answers apart, so other words earn nothing.
    """
    right = _optimal(problems, texts)
    keys = [
        (problem, parse(text) if one else None)
        for problem, text, one in zip(problems, texts, right, strict=True)
    ]
    same, answers = Counter(keys), Counter(problems)
    return [
        one and 1 - (same[key] - 1) / max(1, 2 * (answers[key[0]] - 1))
        for key, one in zip(keys, right, strict=True)
    ]


def _derived(problem: str, text: str) -> float:
    """1 when the answer is optimal and what sound reasoning leads to.

    Where the optimum can be computed event by event, the reasoning must do so: true claims about
    the events of an answer that was guessed earn nothing.
    """
    if verify_text(problem, text).status != Status.OPTIMAL:
        return 0.0
    day = problem_from_text(problem)
    trace = check_trace(day, text)
    decides = trace.computes or not is_computable(day)
    return float(decides and trace.sound and bool(trace.follows))


def _published(judge: Callable[[Mapping[str, Any], str], float]) -> Callable[..., list[Any]]:
    return _each(lambda problem, text: judge(blog.row_of(problem_from_text(problem)), text))


#: Every function by name: problems as JSON strings, texts -> a number each, or None.
_FUNCTIONS: dict[str, Callable[..., list[Any]]] = {
    **{name: _by_verdict(component) for name, component in COMPONENTS.items()},
    "ranked": _ranked,
    "passk": _passk,
    "rare": _rare,
    "derived": _each(_derived),
    **{name: _published(judge) for name, judge in blog.REWARDS.items()},
}
