"""What the embedded base model is made from: personas and tokens."""
