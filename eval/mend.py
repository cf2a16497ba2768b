"""What do answers gain when the checker's violations come back, and the model answers again?

On the main tier, of answers that ``make sample`` drew: the first half of them are first tries. One
that breaks a rule, or cannot be read, is given back, in four ways beside each other::

    first   it is not: what the answers are without
    told    a second turn says what is wrong (``rewards.environments``), and to answer again
    again   a second turn only says to answer again
    apart   an independent second try in its place, from the other half of the answers

A first try that breaks no rule stands, whatever its worth: nobody says whether it is optimal.
Writes to ``runs/<run>/eval/<arm>/mend``: ``mend.json``, ``mend.md``, and ``answers.jsonl``, the
second answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.common.errors import require, run_main
from data.common.files import Stage, sha256, write_jsonl
from data.common.seeds import seed_of
from data.problem import Problem
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import goal
from eval.answers.asker import Asker, Turn
from eval.answers.files import AnsweredRow, SampleRow, VerdictRow, answered
from eval.answers.judge import check_judged, score_rows
from eval.answers.sampling import way_again
from eval.show.tables import Sheet, label, publish
from eval.stats.estimate import (
    Values,
    bootstrap_weights,
    by_name,
    cell,
    mean_interval,
    paired_difference,
)
from pipeline.model.load import model_inputs
from rewards.environments.trl_env import complaint
from rewards.verify import VALID, Status

AGAIN = "Answer again, in the same form."
WAYS = {
    "first": "the first try alone",
    "told": "told what is wrong with it",
    "again": "asked again, not told",
    "apart": "an independent second try",
}
#: Whether an answer breaks no rule, and whether it is optimal.
_KINDS = ("valid", "optimal")


def turns_for(tries: Sequence[AnsweredRow]) -> Iterator[Turn]:
    """Both second turns about each first try that is given back."""
    for row in tries:
        if row["status"] not in VALID:
            said = f"{complaint(row['status'], row['violations'])} {AGAIN}"
            place = row["id"], row["sample"]
            yield Turn(*place, "told", row["completion"], said)
            yield Turn(*place, "again", row["completion"], AGAIN)


def outcomes(
    rows: Sequence[AnsweredRow],
    tries: int,
    problems: Mapping[str, Problem],
    second: Mapping[str, Sequence[SampleRow]],
    lenient: bool,
) -> Values:
    """Shares of what the answers are in the end, [problems, ways, kinds].

    Args:
        rows: the answers that were drawn, of which those numbered below ``tries`` are first tries,
            and each has the one ``tries`` further on as its independent second try.
        second: the answers to the turns, by way.
    """

    def by_place(judged: Iterable[VerdictRow]) -> dict[tuple[str, int], tuple[bool, bool]]:
        return {
            (row["id"], row["sample"]): (row["status"] in VALID, row["status"] == Status.OPTIMAL)
            for row in judged
        }

    known = by_place(rows)
    told, again = (
        by_place(score_rows(problems, second[way], lenient=lenient)) for way in ("told", "again")
    )

    def ends(name: str, number: int) -> list[tuple[bool, bool]]:
        """The outcome of a first try in each of ``WAYS``."""
        first = known[name, number]
        if first[0]:
            return [first] * len(WAYS)
        return [first, told[name, number], again[name, number], known[name, number + tries]]

    by_problem = [[ends(name, number) for number in range(tries)] for name in problems]
    return np.array(by_problem).mean(axis=1)


def gains(shares: Values, seed: int, resamples: int) -> dict[str, Any]:
    """``ways``: what the answers are in the end, in each way; ``gain``: how much more of them are
    valid and optimal where the model was told than in each other way, problem by problem."""
    weights = bootstrap_weights(len(shares), resamples, seed)
    at = dict(zip(WAYS, shares.transpose(1, 0, 2), strict=True))
    others = [way for way in WAYS if way != "told"]
    return {
        "ways": {way: by_name(_KINDS, mean_interval(at[way], weights)) for way in WAYS},
        "gain": {
            way: by_name(_KINDS, paired_difference(at["told"], at[way], weights)) for way in others
        },
    }


def mend_sheet(mended: Mapping[str, Any]) -> Sheet:
    """The outcome of every way, and what being told gains over it."""
    return Sheet(
        f"{label(mended['arm'])}: an answer that breaks a rule is given back; in %, and points",
        ["", *_KINDS, *(f"told is ahead: {kind}" for kind in _KINDS)],
        [
            [
                words,
                *(cell(mended["ways"][way][kind]) for kind in _KINDS),
                *(cell(mended["gain"].get(way, {}).get(kind), "+") for kind in _KINDS),
            ]
            for way, words in WAYS.items()
        ],
        [
            f"{mended['problems']:,} problems of {mended['tier']} x {mended['tries']} first tries, "
            f"{mended['given back']:,} of them given back",
            "A first try that breaks no rule stands",
        ],
    )


def run(recipe: Recipe, arm: str, problems: int | None, force: bool) -> None:
    """Give an arm's answers back, unless that is done.

    Args:
        problems: test problems of the main tier, the first ones; all where it is None.

    Raises:
        UserError: when the arm's answers are not there or not judged, are fewer than two a problem,
            or its model takes no second turn.
    """
    run, tier = recipe.run, recipe.data.main
    samples = run.samples(arm)
    require(samples.is_file(), f"{samples} does not exist; {goal('eval')} draws and judges it")
    check_judged(run, [arm])
    settled = recipe.for_arm(arm).eval
    asking = way_again(run, arm, settled.server)
    tries = asking.samples // 2
    require(tries, f"{samples} has one answer a problem, and mending needs two; raise eval.samples")
    asker = Asker(run, arm, recipe.dtype, recipe.seed, asking.server)
    asker.check_turns()
    resamples, lenient = recipe.eval.resamples, settled.lenient
    settings = {
        "arm": arm,
        "seed": recipe.seed,
        "dtype": recipe.dtype,
        "main": tier,
        "problems": problems,
        "resamples": resamples,
        "lenient": lenient,
    }
    inputs = [run.split("test"), run.verdicts(arm), *model_inputs(run.model(arm))]
    stage = Stage(samples.parent / "mend", f"mend {arm}", settings, inputs)
    if not stage.begin_unless_done(force):
        return
    test = read_split(run, "test")
    of_tier = [row for row in test if row["tier"] == tier]
    asked = {row["id"]: row for row in of_tier[:problems]}
    of_arm = answered(samples, {row["id"] for row in test})
    rows = [row for row in of_arm if row["id"] in asked]
    turns = list(turns_for([row for row in rows if row["sample"] < tries]))
    second: dict[str, list[SampleRow]] = {"told": [], "again": []}
    for turn, given in zip(turns, asker.second_turns(asked, turns, asking), strict=True):
        second[turn.way].append(given)
    shares = outcomes(
        rows, tries, {name: row["problem"] for name, row in asked.items()}, second, lenient
    )
    mended = {
        "arm": arm,
        "tier": tier,
        "problems": len(asked),
        "tries": tries,
        "given back": len(second["told"]),
        **gains(shares, seed_of(recipe.seed, "mend", arm), resamples),
    }
    path = stage.folder / "mend.json"
    publish(path, mended, [mend_sheet(mended)])
    drawn = [{**row, "way": way} for way, given in second.items() for row in given]
    write_jsonl(stage.folder / "answers.jsonl", drawn)
    stage.finish([path.name, "mend.md", "answers.jsonl"], hashes={path.name: sha256(path)})


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="whose answers, instead of every sampled arm's")
    parser.add_argument("--problems", type=int, help="the first so many problems of the main tier")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    require(
        arguments.problems is None or arguments.problems > 0,
        f"--problems must be 1 or more, not {arguments.problems}",
    )
    if arguments.arm:
        recipe.run.require_known(arguments.arm)
    recipe.run.require_data()
    arms = [arguments.arm] if arguments.arm else recipe.run.sampled()
    require(arms, f"{recipe.run.eval} has no finished samples; {goal('eval')} draws them")
    for arm in arms:
        run(recipe, arm, arguments.problems, arguments.force)


if __name__ == "__main__":
    run_main(main)
