"""Around a trainer of TRL: settings, backends, checkpoints, going on after an interruption."""
