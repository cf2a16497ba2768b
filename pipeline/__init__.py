"""Training: the embedded base model, SFT, GRPO, and the recipe that configures them."""

import data  # noqa: F401  (Ctrl-C while a stage is imported)
