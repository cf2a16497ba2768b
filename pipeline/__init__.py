"""Training: the embedded base model, SFT, GRPO, and the recipe that configures them."""
