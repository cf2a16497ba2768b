"""Samples answers to the test problems from every arm, under identical decoding, to disk.

Writes ``runs/<run>/eval/<arm>/samples.jsonl``, one row a completion, in the order of the problems.
All samples of a problem are written together, so an interrupted run goes on with the missing
problems.

With ``--shard i/n`` n processes, each with its own GPU or machine, draw a part each
(``eval.answers.parts``). Every problem has its own random stream, and a part is whole batches of
those that one process would draw, since neighbours in a batch change the rounding: in bfloat16,
other batches changed one answer in twenty. On the same kind of machine the file has the same bytes
as from one process. The same holds for an interrupted run: a batch that was not written to its end
is drawn again whole.

With ``eval.server`` in the recipe the answers come from a server (``eval.answers.server``), which
batches and rounds as its load has it, so none of this is promised.
"""

from __future__ import annotations

from data.common.errors import run_main
from data.recipe import recipe_arguments, recipe_from
from data.run import Run, maker
from eval.answers.parts import read_shard
from eval.answers.roles import beforehand
from eval.answers.sampling import sample_arm
from eval.answers.server import NotServedError


def trained_arms(run: Run) -> list[str]:
    """The arms whose weights are there; says which are missing."""
    trained = []
    for arm in run.names:
        if run.is_trained(arm):
            trained.append(arm)
        else:
            print(f"eval: no finished {arm} model, so it is left out; {maker(arm)} trains it")
    return trained


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="only this arm, instead of all that are trained")
    parser.add_argument(
        "--shard", help="i/n: only the i-th of n parts, one for each of n processes at a time"
    )
    arguments = parser.parse_args()
    shard = read_shard(arguments.shard) if arguments.shard is not None else None
    recipe = recipe_from(arguments)
    run = recipe.run
    if arguments.arm:
        run.require_known(arguments.arm)
    chosen = [arguments.arm] if arguments.arm else trained_arms(run)
    for sentence in beforehand(recipe, {*chosen, *run.sampled()}):
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
