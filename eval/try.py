"""``make try``: ask a trained model about a day of your own, and draw its answer."""

from data.common.errors import run_main
from eval.day.ask import main

if __name__ == "__main__":
    run_main(main)
