"""``vits tune``: find a run's settings."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from services.training.config import TrainingConfig
from services.training.config_sources import load, read_overrides
from services.training.tuning.options import Options, take_options
from services.training.tuning.space import DEFAULT_SPACE, TUNABLE
from shared.errors import ConfigError
from shared.folders import check_writable, writing

_INTRODUCTION = """\
usage: vits tune [lr|batch] [--config] FILE.json ... [--KEY VALUE ...]

Find the settings of a training instead of guessing them. Takes the same configuration as 'vits train'; nothing
is saved but what was found, in OUTPUT_DIR/tune, and nothing is published.

  vits tune batch   what fits into memory: measures steps on the longest recordings; suggests batch, accumulation
                    and checkpointing. batch.json, batch.html
  vits tune lr      a learning rate: a few steps at a rate that rises from far too low to far too high.
                    learning-rate.json, learning-rate.html
  vits tune         a search over several keys at once: short runs, judged on held-out recordings, the first of them
                    with the configuration as it is. best.json, report.html, trials.csv

Each .json is a layer for 'vits train': --config spa.json --config OUTPUT_DIR/tune/best.json

A search that was stopped or killed goes on when it is started again. Started a second time beside itself, it is a
second worker; on another machine, give both the same --storage. Trials that are under way when --trials is reached
still come to their end.

examples:
  vits tune batch --config spa.json --memory 8gb
  vits tune lr --config spa.json
  vits tune --config spa.json --max_steps 200 --eval_steps 50 --trials 20
  vits tune --config spa.json --max_steps 200 --space space.json --objective mel

space.json holds lists of values, or ranges:
  {"weight_mel": [25, 35, 45], "learning_rate": {"low": 1e-6, "high": 1e-4, "log": true}}
"""


def main(argv: Sequence[str]) -> int:
    """Run ``vits tune``.

    Raises:
        UserError: Configuration, options or data cannot be used.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text())
        return 0 if argv else 2
    what, rest = (argv[0], argv[1:]) if argv[0] in {"lr", "batch"} else ("search", argv)
    paths, overrides = read_overrides(rest)
    options = take_options(overrides)
    config, remarks = load(paths, overrides, options=list(Options.model_fields))
    for remark in remarks:
        print(remark, file=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "vits tune runs on one process:",
            ["start the same command once more for each further worker of a search, instead of torchrun"],
        )
    if config.use_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for devices
    if what == "search":
        from services.training.tuning.search import search

        search(config, options, _folder(config))
    elif what == "lr":
        _find_learning_rate(config, options)
    else:
        _find_batch_size(config, options)
    return 0


def help_text() -> str:
    """The text of ``vits tune --help``."""
    lines = [_INTRODUCTION, "options (default), beside every key of 'vits train --help':"]
    for name, field in Options.model_fields.items():
        lines.append(f"  --{name} ({'none' if field.default is None else str(field.default).lower()})")
        lines.append(textwrap.indent(textwrap.fill(str(field.description), 100), " " * 8))
    lines += [
        "",
        "searched where --space says nothing else:",
        textwrap.indent(json.dumps(DEFAULT_SPACE), "  "),
    ]
    lines += [textwrap.fill(f"what can be searched: {', '.join(TUNABLE)}", 108)]
    return "\n".join(lines)


def _folder(config: TrainingConfig) -> Path:
    """Where it is written what was found.

    Raises:
        UserError: It cannot be made, or not be written.
    """
    folder, remedy = config.output_dir / "tune", "give another --output_dir"
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, remedy)
    return folder


def _find_learning_rate(config: TrainingConfig, options: Options) -> None:
    from accelerate import Accelerator

    from services.training.session import begin, precision
    from services.training.tuning import learning_rate as finder

    folder = _folder(config)
    session = begin(config, Accelerator(mixed_precision=precision(config), cpu=config.use_cpu))
    curve = finder.find_learning_rate(
        session, lowest=options.lowest, highest=options.highest, ramp=options.ramp
    )
    if session.base.untrained:
        print(
            f"The base lacks {', '.join(session.base.untrained)}, whose learning the curve is mostly about: look for "
            "the rate once more with a checkpoint of the second stage as model_name_or_path."
        )
    for line in finder.describe(curve, config):
        print(line)
    if curve.suggestion is not None:
        _write_layer(folder / "learning-rate.json", {"learning_rate": curve.suggestion})
    path = folder / "learning-rate.html"
    path.write_text(finder.curve_page(curve, config), encoding="utf-8")
    print(f"the curve is in {path}")


def _find_batch_size(config: TrainingConfig, options: Options) -> None:
    from services.training.tuning import batch_size as finder

    folder = _folder(config)
    wanted = config.per_device_train_batch_size * config.gradient_accumulation_steps
    limit = options.memory_bytes or finder.available_memory(config)
    found = finder.find_batch_size(wanted, limit, finder.measure_in_a_process(config))
    for line in finder.describe(found, wanted):
        print(line)
    if found.layer:
        _write_layer(folder / "batch.json", found.layer)
    path = folder / "batch.html"
    path.write_text(finder.suggestion_page(found, wanted, config), encoding="utf-8")
    print(f"what was measured is in {path}")


def _write_layer(path: Path, layer: dict[str, object]) -> None:
    path.write_text(json.dumps(layer, indent=4) + "\n", encoding="utf-8")
    print(f"give {path} to 'vits train' as a further --config")
