"""Samples answers to the test problems from every arm, under identical decoding, to disk.

Writes ``runs/<run>/eval/<arm>/samples.jsonl``, one row a completion, in the order of the problems.
An interrupted run goes on with the missing problems. Neighbours in a batch change the rounding (in
bfloat16, other batches changed one answer in twenty), so a batch that was not written to its end is
drawn again whole, and the file has the bytes of a run without interruption.

With ``eval.server`` in the recipe the answers come from a server (``eval.answers.server``), which
batches and rounds as its load has it, so none of this is promised.
"""

from __future__ import annotations

from data.common.errors import run_main
from data.recipe import recipe_arguments, recipe_from
from data.run import Run, maker
from eval.answers.roles import beforehand
from eval.answers.sampling import sample_arm


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
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    run = recipe.run
    if arguments.arm:
        run.require_known(arguments.arm)
    run.require_data()
    chosen = [arguments.arm] if arguments.arm else trained_arms(run)
    for sentence in beforehand(recipe, {*chosen, *run.sampled()}):
        print(f"eval: {sentence}", flush=True)
    for arm in chosen:
        sample_arm(recipe, arm, arguments.force)


if __name__ == "__main__":
    run_main(main)
