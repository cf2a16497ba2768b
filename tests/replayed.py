"""SFT, interrupted and resumed, then GRPO on answers that are given and not sampled, so that one
process and several can be compared: each process draws random numbers of its own.

A program: ``python tests/replayed.py RECIPE``, alone or below ``accelerate launch``.
"""

import sys
from pathlib import Path

from data.common.errors import run_main
from data.prompts import answer, messages
from data.recipe import load_recipe
from pipeline import grpo, sft

#: After this step SFT is interrupted, once.
STOP = 3

_trainer_for = grpo.trainer_for


def trainer_for(training, rows, model, tokenizer, output):
    """As ``grpo.trainer_for``; the answers to a prompt are good, short, empty, and a copy of it."""
    trainer = _trainer_for(training, rows, model, tokenizer, output)
    asked = {str(messages(row["prompt"])): row["problem"] for row in rows}

    def replay(prompts, trainer):
        prompt_ids, completion_ids = [], []
        # A group may lie in several processes: its answers are told apart by their place in all.
        first = trainer.accelerator.process_index * len(prompts)
        for place, prompt in enumerate(prompts, start=first):
            problem = asked[str(prompt)]
            days = (problem.events[1:], problem.events[:1], (), problem.events)
            text = answer(days[place % trainer.num_generations % 4], "")
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
            prompt_ids.append(ids["input_ids"])
            completion_ids.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    trainer.rollout_func = replay
    return trainer


def main():
    from pipeline.watch.log import Log

    recipe = load_recipe(Path(sys.argv[1]))
    grpo.trainer_for = trainer_for

    def stop(self, args, state, control, **_):
        if state.global_step == STOP:
            raise KeyboardInterrupt

    Log.on_step_end, on_step_end = stop, Log.on_step_end
    try:
        sft.run(recipe, force=False)
    except KeyboardInterrupt:
        Log.on_step_end = on_step_end
    for _ in range(2):
        sft.run(recipe, force=False)
    grpo.run(recipe, force=False)


if __name__ == "__main__":
    run_main(main)
