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

from typing import TYPE_CHECKING

from data.common.errors import UserError, run_main
from data.common.files import finished
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.run import maker
from eval.answers.parts import (
    read_shard,
)
from eval.answers.roles import beforehand
from eval.answers.sampling import sample_arm
from eval.answers.server import NotServedError

if TYPE_CHECKING:
    pass


def trained_arms(recipe: Recipe) -> list[str]:
    """The arms whose weights are there; what is missing is said."""
    found = []
    for arm in recipe.run.names:
        if recipe.run.is_trained(arm):
            found.append(arm)
        else:
            print(f"eval: no finished {arm} model, so it is left out; {maker(arm)} trains it")
    return found


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
