"""Starts a stage in several processes: ``accelerate launch`` without its tracebacks (LAUNCH=)."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from data.common.errors import UserError, run_main


def main() -> None:
    """Launch, and end as the first process did that failed: it has explained why itself.

    Raises:
        UserError: when that process was killed, and so could not say why.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "arguments",
        nargs="*",
        help="those of `accelerate launch`, such as --config_file pipeline/accelerate/ddp.yaml "
        "--num_processes 4 -m pipeline.sft --recipe FILE; `accelerate launch --help` lists them",
    )
    given = sys.argv[1:]
    asks = given[:1] in ([], ["-h"], ["--help"])
    arguments = parser.parse_args(given or ["--help"] if asks else ["--", *given]).arguments
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.agent.server import api  # noqa: F401  (sets its own log level)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # They report a failure that was reported already, or the Ctrl-C that the user just pressed.
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            killed = signal.Signals(-failure.exitcode).name
            memory = ", as when memory runs out" if killed == "SIGKILL" else ""
            raise UserError(f"process {rank} was killed ({killed}{memory})") from None
        sys.exit(failure.exitcode)


if __name__ == "__main__":
    run_main(main)
