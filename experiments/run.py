"""The main job: raw tables -> store -> labels -> trained model -> honest test figures, by one command.

    python -m experiments.run --config=configs/lstm_small.py [--workdir=DIR] [--config.section.key=value ...]

The same command again resumes where it stopped, or says that the run is complete.
"""

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/lstm_small.py or configs/lstm_small.py:debug.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of this run is written; default: runs/NAME of the recipe.")


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a mistyped config key told in one line instead of a traceback."""
    try:
        return flags.FLAGS(argv, known_only=False)
    except AttributeError as error:
        sys.exit(f"--config has no such key: {' '.join(str(error).replace(chr(92), '').split())}")
    except flags.Error as error:
        sys.exit(f"{error}\nTry: python -m experiments.run --helpshort")


def main(argv: list[str]) -> None:
    """Runs the recipe named by --config."""
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}: options start with two dashes, e.g. --config.train.num_steps=100")
    if _CONFIG.value is None:
        sys.exit("--config is missing: python -m experiments.run --config=configs/lstm_small.py")
    from experiments import build, stages  # after the flags, so that --help and a mistyped key answer at once

    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    try:
        build.check_config(config)
        stages.run(config, workdir, command=command)
    except build.UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
