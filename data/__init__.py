"""Scheduling problems: what they are, how they are made, and what their proven optimum is."""

import signal
import sys

# While `python -m` imports a stage, which takes seconds, Ctrl-C just ends it; ``run_main`` then has
# a sentence for that. argv is so only there, not where this is a library.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
