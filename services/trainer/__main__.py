"""Runs the trainer: ``python -m services.trainer --config FILE``; ``… init --config FILE --corpus FILE`` makes the small policy first."""

import argparse
import logging
import sys
from pathlib import Path

from services.common import logs
from services.common.config.paths import initial_model_dir
from services.common.serve import config_arguments, config_from, serve

log = logging.getLogger(__name__)


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["init"]:
        init(sys.argv[2:])
        return
    from services.trainer.app import create_app

    serve("trainer", create_app)


def init(argv: list[str]) -> None:
    """Makes the policy that training starts from, unless ``actor.path`` names one. Exits with one clear line where that fails."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer init")
    config_arguments(parser)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines of {tools, messages}: the text the tokenizer is trained on")
    arguments = parser.parse_args(argv)
    config = config_from(arguments)
    logs.configure("trainer", config.log_level)
    if config.actor.path:
        log.info("actor.path names a model, so there is none to make")
        return
    from services.trainer.model_init import make_model

    try:
        make_model(initial_model_dir(config), arguments.corpus, config.policy_init, config.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"init: {error}")


if __name__ == "__main__":
    main()
