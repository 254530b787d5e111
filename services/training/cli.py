"""``vits train``: fine-tune a model on one person's recordings."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from services.training.config_help import help_text, markdown, printed
from services.training.config_sources import load, read_overrides
from shared.errors import ConfigError

_PROFILED_STEPS = 3
#: What it takes beside the keys of a configuration.
_OPTIONS = ("print_config", "profile", "help", "help_markdown")


def main(argv: Sequence[str]) -> int:
    """Run ``vits train``."""
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text())
        return 0 if argv else 2
    if "--help-markdown" in argv:
        print(markdown(), end="")
        return 0
    paths, overrides = read_overrides(argv)
    show = overrides.pop("print_config", False)
    profile = _steps_of_profile(overrides.pop("profile", None))
    config, remarks = load(paths, overrides, options=_OPTIONS)
    if os.environ.get("RANK", "0") == "0":  # torchrun numbers its processes
        for remark in remarks:
            print(remark, file=sys.stderr)
    if show:
        print(printed(config))
        return 0
    if config.use_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for devices
    # As process 1 of a container, Python would not hear it. The loop has an answer of its own, which saves.
    before = signal.signal(signal.SIGTERM, _stop_at_once)
    try:
        if profile:
            from services.training import profiling

            profiling.run(config, profile)
        else:
            from services.training.loop import train

            train(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _steps_of_profile(value: object) -> int:
    """``--profile`` or ``--profile N`` as a number of steps; 0 without it.

    Raises:
        ConfigError: It is no such number, or several processes would write one profile.
    """
    if value is None:
        return 0
    steps = _PROFILED_STEPS if value is True else int(str(value)) if str(value).isdecimal() else 0
    if not steps:
        raise ConfigError("--profile:", [f"{value!r} is no number of steps, such as 5"])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--profile:", ["profiles one process: start it without torchrun"])
    return steps


def _stop_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """What SIGTERM does while there is nothing to save: end with the exit code that a shell would give."""
    raise SystemExit(128 + number)
