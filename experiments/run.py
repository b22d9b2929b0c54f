"""The main job: raw tables -> store -> labels -> trained model -> honest test figures, by one command.

    python -m experiments.run --config=configs/lstm_small.py [--workdir=DIR] [--config.section.key=value ...]

The same command again resumes where it stopped, or says that the run is complete.
"""

import shlex
import signal
import sys
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ehrjax.train.interrupt import Interrupted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/lstm_small.py or configs/lstm_small.py:debug."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "On an error, show where in the code it came from.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything of this run is written; default: runs/NAME of the recipe."
)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a mistyped config key told in one line instead of a traceback."""
    try:
        return flags.FLAGS(argv, known_only=False)
    except (AttributeError, KeyError) as error:  # of a key; of the part that should hold it
        # ml_collections quotes its own message, line breaks and all.
        told = str(error).replace("\\n", ". ").replace("\\", "").replace("'", "")
        sys.exit(f"--config has no such key: {' '.join(told.split())}")
    except flags.Error as error:
        sys.exit(f"{error}\nTry: python -m experiments.run --helpshort")


def _stop(signum: int, frame: object) -> None:
    raise KeyboardInterrupt(signum)


def main(argv: list[str]) -> None:
    """Runs the recipe named by --config."""
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}: options start with two dashes, e.g. --config.train.num_steps=100")
    if _CONFIG.value is None:
        sys.exit("--config is missing: python -m experiments.run --config=configs/lstm_small.py")
    from experiments import stages  # after the flags, so that --help and a mistyped key answer at once

    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps otherwise
    getLogger("asyncio").disabled = True  # it repeats what a failed save raises
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C; in training both save a checkpoint first
    try:
        stages.run(config, workdir, command=command)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt as stop:
        print(f"\nstopped; what was finished is kept in {workdir}. To go on, run: {command}", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except (ValueError, OSError, FloatingPointError) as error:
        if _TRACEBACK.value:
            raise
        is_here = isinstance(error, OSError) and str(error.filename or "").startswith(str(workdir))
        sys.exit(f"error: {error}" + (". Name a --workdir that can be written to." if is_here else ""))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
