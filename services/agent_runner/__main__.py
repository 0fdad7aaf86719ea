"""``python -m services.agent_runner`` serves; ``python -m services.agent_runner corpus`` writes the text corpus of the warm start."""

import argparse
import sys
from pathlib import Path

from services.agent_runner.app import create_app
from services.agent_runner.corpus import write_corpus
from services.common.serve import config_arguments, config_from, serve


def corpus(arguments: list[str]) -> None:
    """The ``corpus`` subcommand."""
    parser = argparse.ArgumentParser(prog="python -m services.agent_runner corpus", description="demonstrations as JSON lines")
    config_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--limit", type=int, default=256, help="conversations to write")
    parser.add_argument("--seed", type=int, default=0, help="draws tasks and qualities")
    parsed = parser.parse_args(arguments)
    count = write_corpus(config_from(parsed), parsed.out, limit=parsed.limit, seed=parsed.seed)
    sys.stdout.write(f"{count} conversations in {parsed.out}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["corpus"]:
        corpus(sys.argv[2:])
    else:
        serve("agent_runner", create_app)
