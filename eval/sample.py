"""Samples answers to the test problems from every arm, under identical decoding, to disk.

Writes ``runs/<run>/eval/<arm>/samples.jsonl``, one row a completion, in the order of the problems.
All samples of a problem are written together, so an interrupted run goes on with the problems that
are missing.

With ``--shard i/n`` n processes, each with a GPU or a machine of its own, draw a part each
(``eval.answers.parts``). Every problem has its own random stream, and the parts are whole batches of those
that one process would draw, so that not even rounding differs: on the same kind of machine the
file is the same, byte for byte, as one process would have written. (Problems dealt out singly are
drawn in other batches. That changes nothing but rounding, and yet one answer in twenty of a
bfloat16 model.) The same holds for a run that was interrupted: a batch that was not written to its
end is drawn again, whole.

With ``eval.server`` in the recipe the answers come from a server instead (``eval.answers.server``), and
none of this is promised: it batches and rounds as its load has it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError, run_main
from data.common.files import MANIFEST, Stage, finished, sha256, stage_facts, to_line, write_bytes
from data.common.seeds import seed_of
from data.recipe import Recipe, build, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import maker
from data.sections import EvalSection
from eval.answers.parts import (
    Shard,
    begin,
    claimed,
    gathered,
    in_turn,
    kept,
    put_together,
    read_shard,
)
from eval.answers.roles import beforehand
from eval.answers.server import NotServedError, Server
from eval.score import score_rows
from pipeline.model import load as models
from pipeline.train import backend
from pipeline.train.trainer import model_inputs
from rewards.verify import Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.model.decode import Decoding, Sample

#: Keys of the eval section that change nothing about the answers, unless these are tuned.
_JUDGING = ("lenient", "resamples")


def trained_arms(recipe: Recipe) -> list[str]:
    """The arms whose weights are there; what is missing is said."""
    found = []
    for arm in recipe.run.names:
        if recipe.run.is_trained(arm):
            found.append(arm)
        else:
            print(f"eval: no finished {arm} model, so it is left out; {maker(arm)} trains it")
    return found


def sample_arm(recipe: Recipe, arm: str, force: bool, shard: Shard | None = None) -> None:
    """Sample one arm, in its own way of asking, unless it is up to date; of its problems only those
    of ``shard``, and who finishes last puts all together.

    Raises:
        UserError: when another process does the same work, or parts of another number lie there;
            NotServedError when the arm's server holds another model.
    """
    model = recipe.run.model(arm)
    test = read_split(recipe.run, "test")
    asking = recipe.for_arm(arm).eval
    tune = {} if arm == "base" else recipe.all_arms()[arm].tune
    if tune and shard:
        if shard.number > 1:
            print(f"eval {arm}: tuned and sampled by one process, --shard 1/{shard.of}", flush=True)
            return
        shard = None
    # What is best depends on how the answers are judged.
    tuning = {"tune": tune, "main": recipe.data.main, "lenient": asking.lenient}
    settings = {**_settings(recipe, arm, asking), **(tuning if tune else {})}
    path = recipe.run.samples(arm)
    splits = ["test", *(["val"] if tune else []), *(["train"] if asking.shots or tune else [])]
    inputs = [recipe.run.split(split) for split in splits]
    stage = Stage(path.parent, f"eval {arm}", settings, [*inputs, *model_inputs(model)])
    with ExitStack() as held:
        with in_turn(path.parent):
            alone = held.enter_context(claimed(path, shard))
            if not begin(stage, path, shard, force, alone):
                return
        asker = Asker(recipe, arm, asking.server)
        asking, facts = _resolved(recipe, asker, asking, tune)
        shares = asker.shares(test, asking, shard.of) if shard else [test]
        mine, own = (shares[shard.number - 1], shard.path(path)) if shard else (test, path)
        elsewhere = gathered(path, asking.samples, but=own) if stage.goes_on else {}
        write_answers(asker, mine, asking, own, "sample", stage.goes_on, elsewhere.keys())
        with in_turn(path.parent):
            if finished(path.parent):  # another process put all together
                return
            lacking = put_together(path, test, asking.samples)
            if lacking:
                _say_waiting(arm, shares, lacking)
                return
            stage.finish([path.name], samples=asking.samples, sha256=sha256(path), **facts)


def _resolved(
    recipe: Recipe, asker: Asker, asking: EvalSection, tune: Mapping[str, Sequence[Any]]
) -> tuple[EvalSection, dict[str, Any]]:
    """The way of asking with all that is tuned or left open resolved, and what the manifest says
    of it.

    Raises:
        NotServedError: when the arm's server holds another model.
    """
    facts: dict[str, Any] = {"served": asker.served} if asker.server else {}
    if tune:
        asking, facts["tuned"] = _tuned(recipe, asker, asking, tune)
    limit = asking.max_tokens or asker.limit(read_split(recipe.run, "test"))
    asking = replace(asking, max_tokens=limit)
    return asking, {"asking": asdict(asking), **facts}


def _say_waiting(
    arm: str, shares: Sequence[Sequence[Mapping[str, Any]]], lacking: set[str]
) -> None:
    waiting = [
        str(number)
        for number, rows in enumerate(shares, 1)
        if not lacking.isdisjoint(row["id"] for row in rows)
    ]
    print(
        f"eval {arm}: part {', '.join(waiting)} of {len(shares)} not whole yet; who finishes last "
        "puts them together",
        flush=True,
    )


def ask_again(
    recipe: Recipe, arm: str, rows: Sequence[Mapping[str, Any]], samples: int, force: bool
) -> Path:
    """Draw ``samples`` fresh answers of a sampled arm to each of ``rows``, in the way in which it
    was asked the first time, unless that is up to date; returns their file. A server may have moved
    since, to where the recipe says."""
    first = recipe.run.samples(arm)
    asking = replace(way_of_asking(first.parent), samples=samples)
    if asking.server:
        asking = replace(asking, server=recipe.for_arm(arm).eval.server or asking.server)
    model = recipe.run.model(arm)
    path = first.parent / "fresh" / first.name
    settings = {**_settings(recipe, arm, asking), "problems": [row["id"] for row in rows]}
    splits = ["test", *(["train"] if asking.shots else [])]
    inputs = [recipe.run.split(split) for split in splits]
    stage = Stage(path.parent, f"eval {arm} again", settings, [*inputs, *model_inputs(model)])
    with claimed(path):
        if not stage.is_current(force, [path]):
            asker = Asker(recipe, arm, asking.server)
            write_answers(asker, rows, asking, path, "fresh", stage.goes_on)
            put_together(path, rows, samples)
            stage.finish([path.name], samples=samples, sha256=sha256(path))
    return path


def way_of_asking(folder: Path) -> EvalSection:
    """How a sampled arm was asked, all that was tuned or left open resolved."""
    asking = stage_facts(folder).get("asking")
    if asking is None:
        raise UserError(f"{folder} was sampled by an earlier version; FORCE=1 make eval redoes it")
    try:
        return build(EvalSection, asking, str(folder / MANIFEST), "asking.")
    except UserError as error:  # of another version's keys, or by hand
        raise UserError(f"{error}; FORCE=1 make eval redoes it") from None


def _settings(recipe: Recipe, arm: str, asking: EvalSection) -> dict[str, Any]:
    """What an arm's answers depend on, its weights aside. Of a server, that it is one: its address
    may change, and how much is asked of it at a time."""
    aside = (*_JUDGING, "server", *(["rows"] if asking.server else []))
    return {
        "arm": arm,
        "model": recipe.run.model(arm),
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        **{key: value for key, value in asdict(asking).items() if key not in aside},
        **({"engine": "server"} if asking.server else {}),
    }


def write_answers(
    asker: Asker,
    rows: Sequence[Mapping[str, Any]],
    asking: EvalSection,
    path: Path,
    stream: str,
    goes_on: bool,
    elsewhere: Collection[str] = (),
) -> None:
    """Write the answers to ``rows`` that neither ``path`` has yet nor other files, which have those
    to the problems ``elsewhere``, as they come.

    Rows are drawn in batches, and rounded as their neighbours have it. So a batch that lacks one is
    drawn again whole, and the answers are those that would have come without an interruption.
    """
    done = kept(path, asking.samples) if goes_on else {}
    answered = done.keys() | set(elsewhere)
    lacking: set[str] = set()
    if answered and not all(row["id"] in answered for row in rows):
        batches = asker.batches(rows, asking)
        ids = [[rows[i]["id"] for i in batch] for batch in batches]
        lacking = {one for batch in ids if not answered.issuperset(batch) for one in batch}
    missing = [row for row in rows if not answered or row["id"] in lacking]
    lines = (line for one, found in done.items() if one not in lacking for line in found)
    write_bytes(path, b"".join(lines))
    if not missing:
        return
    said = time.monotonic()
    # A server may send lone surrogates, which UTF-8 cannot hold; in JSON their escape can.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for count, found in enumerate(asker.answers(missing, asking, stream), 1):
            file.write("".join(map(to_line, found)))
            file.flush()
            now = time.monotonic()
            if now - said > 15 or count == len(missing):
                said = now
                print(
                    f"{stream} {asker.arm}: {count}/{len(missing)} problems x {asking.samples} "
                    f"answers  {count * asking.samples / asker.seconds:.0f} answers/s",
                    flush=True,
                )


class Asker:
    """An arm's model, loaded when it is asked, or held by ``server``. ``seconds`` counts from the
    first question."""

    def __init__(self, recipe: Recipe, arm: str, server: str | None = None) -> None:
        self.recipe, self.arm, self._started = recipe, arm, 0.0
        self.server = Server(server) if server else None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from pipeline.model.decode import prepare

        backend.quiet()
        model, tokenizer = models.load(self.recipe.run.model(self.arm), self.recipe.dtype)
        prepare(model)
        return model, tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from pipeline.model.lengths import read_tokenizer

        model = self.recipe.run.model(self.arm)
        tokenizer = read_tokenizer(model)
        models.check_template(tokenizer, model)
        return tokenizer

    @cached_property
    def served(self) -> dict[str, str]:
        """What the arm's server calls the arm's model, and where it has it from.

        Raises:
            NotServedError: when it holds another one.
        """
        names = [self.arm]
        while names[-1] != "base" and self.recipe.all_arms()[names[-1]].trainer == "none":
            names.append(self.recipe.all_arms()[names[-1]].start)
        model = self.recipe.run.model(self.arm)
        return self.server.model_of(names, model, self.recipe.dtype)

    def limit(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Tokens that an answer to ``rows`` may have where the recipe does not say."""
        from pipeline.model.decode import answer_limit

        return answer_limit(self._tokenizer, rows)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _prompts(self, rows: Sequence[Mapping[str, Any]], asking: EvalSection) -> list[str]:
        """The rows' prompts as the model reads them."""
        from pipeline.model.decode import render

        shots = shots_for(self.recipe, rows, asking.shots)
        return [render(self._tokenizer, row["prompt"], shots[row["id"]]) for row in rows]

    def batches(self, rows: Sequence[Mapping[str, Any]], asking: EvalSection) -> list[list[int]]:
        """The rows, by index, that ``answers`` draws together; a server has its own mind."""
        from pipeline.model.decode import batches

        if self.server:
            return [[i] for i in range(len(rows))]
        return batches(self._prompts(rows, asking), asking.samples, asking.rows)

    def shares(
        self, rows: Sequence[Mapping[str, Any]], asking: EvalSection, count: int
    ) -> list[list[Mapping[str, Any]]]:
        """``rows`` in ``count`` parts, each in the order of ``rows``: whole batches of those that
        ``answers`` would draw of all, dealt out in turn. The last, which may be smaller, is the
        last of its part too, so a part falls into the same batches."""
        from pipeline.model.decode import batches

        dealt = batches(self._prompts(rows, asking), asking.samples, asking.rows)
        return [
            [rows[i] for i in sorted(chain.from_iterable(dealt[k::count]))] for k in range(count)
        ]

    def answers(
        self, rows: Sequence[Mapping[str, Any]], asking: EvalSection, stream: str = "sample"
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the sample rows of each problem. ``stream`` names the random stream: with another
        one the answers are fresh."""
        from pipeline.model.decode import Decoding, reasoning_prefix

        prefix = reasoning_prefix(self._tokenizer)
        decoding = Decoding(
            max_tokens=asking.max_tokens or self.limit(rows),
            temperature=asking.temperature,
            top_p=asking.top_p,
        )
        prompts = self._prompts(rows, asking)
        seeds = [seed_of(self.recipe.seed, stream, self.arm, row["id"]) for row in rows]
        self._started = time.monotonic()
        for i, found in self._drawn(prompts, asking, decoding, seeds):
            yield [
                {
                    "id": rows[i]["id"],
                    "arm": self.arm,
                    "sample": number,
                    "completion": prefix + one.completion,
                    "finish_reason": one.finish_reason,
                    "tokens": one.tokens,
                }
                for number, one in enumerate(found)
            ]

    def _drawn(
        self, prompts: list[str], asking: EvalSection, decoding: Decoding, seeds: list[int]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (prompt index, its samples), from the server or drawn here."""
        from pipeline.model.decode import sample

        if self.server:
            held = self.served["id"]
            at_once = max(1, asking.rows // asking.samples)
            yield from self.server.sample(
                held, self._tokenizer, prompts, asking.samples, decoding, seeds, at_once
            )
            return
        model, tokenizer = self._loaded
        yield from sample(model, tokenizer, prompts, asking.samples, decoding, seeds, asking.rows)


def shots_for(
    recipe: Recipe, rows: Sequence[Mapping[str, Any]], count: int
) -> dict[str, list[tuple[str, str]]]:
    """By ``id``, ``count`` solved training problems of each problem's tier.

    Raises:
        UserError: when a tier has fewer.
    """
    if not count:
        return {row["id"]: [] for row in rows}
    by_tier: dict[str, list[dict[str, Any]]] = {}
    for row in read_split(recipe.run, "train"):
        by_tier.setdefault(row["tier"], []).append(row)
    found = {}
    for row in rows:
        known = by_tier.get(row["tier"], [])
        if len(known) < count:
            raise UserError(
                f"{recipe.path}: {count} shots need as many train problems of tier "
                f"{row['tier']!r}, which has {len(known)}"
            )
        rng = random.Random(seed_of(recipe.seed, "shots", row["id"]))
        found[row["id"]] = [(one["prompt"], one["gold"]) for one in rng.sample(known, count)]
    return found


def _tuned(
    recipe: Recipe, asker: Asker, asking: EvalSection, tune: Mapping[str, Sequence[Any]]
) -> tuple[EvalSection, list[dict[str, Any]]]:
    """The way of asking with the most optimal answers on the main tier's val problems, of all
    combinations of ``tune``'s values, and the share that each one reached."""
    val = [row for row in read_split(recipe.run, "val") if row["tier"] == recipe.data.main]
    problems = {row["id"]: row["problem"] for row in val}
    tried = []
    for values in product(*tune.values()):
        way = replace(asking, **dict(zip(tune, values, strict=True)))
        rows = chain.from_iterable(asker.answers(val, way, "tune"))
        verdicts = [row["status"] for row in score_rows(problems, rows, lenient=way.lenient)]
        share = verdicts.count(Status.OPTIMAL) / len(verdicts)
        tried.append({**dict(zip(tune, values, strict=True)), "optimal": share})
        print(f"eval {asker.arm}: tried {tried[-1]}", flush=True)
    best = max(tried, key=lambda found: found["optimal"])
    return replace(asking, **{key: best[key] for key in tune}), tried


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="only this arm, instead of all that are trained")
    parser.add_argument(
        "--shard", help="i/n: only the i-th of n parts, one for each of n processes at a time"
    )
    arguments = parser.parse_args()
    shard = read_shard(arguments.shard) if arguments.shard is not None else None
    recipe = recipe_from(arguments)
    known = recipe.run.names
    if arguments.arm and arguments.arm not in known:
        raise UserError(f"--arm must be one of {', '.join(known)}, not {arguments.arm!r}")
    chosen = [arguments.arm] if arguments.arm else trained_arms(recipe)
    sampled = [arm for arm in known if finished(recipe.run.samples(arm).parent)]
    for sentence in beforehand(recipe, {*chosen, *sampled}):
        print(f"eval: {sentence}", flush=True)
    left_out = []
    for arm in chosen:
        try:
            sample_arm(recipe, arm, arguments.force, shard)
        except NotServedError as error:
            left_out.append(error)
            print(f"eval: {arm} is left out: {error}", flush=True)
    if left_out and len(left_out) == len(chosen):
        raise left_out[0]


if __name__ == "__main__":
    run_main(main)
