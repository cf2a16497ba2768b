"""What every package shares: errors, whole files, locks, the terminal, seeds."""
