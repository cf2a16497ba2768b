"""Stage ``make arms``: train every arm of a recipe, each after the one that it starts from."""

from __future__ import annotations

import subprocess
import sys

from data.common.errors import run_main
from data.recipe import recipe_arguments, recipe_from
from pipeline import grpo, rejection, sft

#: The command of each trainer.
MODULES = {"sft": sft, "grpo": grpo, "rejection": rejection}


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    recipe = recipe_from(arguments)
    arms = {name: arm for name, arm in recipe.all_arms.items() if arm.trainer != "none"}
    # Unsloth's patches stay: arms of several backends need a process each.
    several = len({recipe.for_arm(name).backend for name in arms}) > 1
    for name, arm in arms.items():
        if several:
            module = MODULES[arm.trainer].__name__
            done = subprocess.run([sys.executable, "-m", module, *sys.argv[1:], "--arm", name])
            if done.returncode:
                sys.exit(done.returncode)
        else:
            MODULES[arm.trainer].run(recipe, arguments.force, name)


if __name__ == "__main__":
    run_main(main)
