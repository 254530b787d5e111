"""``vits train``: fine-tune a model on one person's recordings."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from services.training.config import IGNORED, SECRETS, TrainingConfig, load, read_overrides

_INTRODUCTION = """\
usage: vits train --config FILE.json [--KEY VALUE ...]

Fine-tune a VITS or MMS model on one person's recordings. Every key can stand in the JSON file, on the
command line as --KEY VALUE (which wins), or in both. The final model goes to output_dir, checkpoints to
output_dir/checkpoint-N, and both to the object store. A run that was stopped goes on from its last
checkpoint when it is started again.

examples:
  vits train --config configs/demo.json
  vits train --config configs/spa.json --dataset_name ./my-recordings --num_train_epochs 100
  vits train --config configs/spa.json --print-config

  --config FILE    the JSON configuration (or simply the file, as first argument); a bare name such as spa.json
                   is also looked up among the shipped ones, in $VITS_CONFIGS (default: configs)
  --store URL      where models are published: file://./store, s3://bucket/prefix (default: $VITS_STORE)
  --print-config   show the configuration with all defaults, and stop

keys (default):
"""


def _type_name(annotation: Any) -> str:
    """A field's type in a few words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type_name(parts[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return " or ".join(_type_name(part) for part in parts if part is not type(None))
    if get_origin(annotation) is list:
        return f"{_type_name(parts[0])},…"
    if get_origin(annotation) is Literal:
        return "|".join(str(part) for part in parts)
    name: str = annotation.__name__
    return {"int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER", "str": "TEXT"}.get(name, name)


def help_text() -> str:
    """The text of ``vits train --help``: every key with its default and meaning."""
    rows = []
    for name, field in TrainingConfig.model_fields.items():
        default = "required" if field.is_required() else field.get_default()
        rows.append(f"  --{name} {_type_name(field.annotation)} ({default})")
        if field.description:
            rows.append(f"        {field.description}")
    ignored = ", ".join(sorted(IGNORED))
    return _INTRODUCTION + "\n".join(rows) + f"\n\nread and not needed: {ignored}"


def main(argv: Sequence[str]) -> int:
    """Run ``vits train``."""
    arguments = list(argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0 if arguments else 2
    if not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    overrides = read_overrides(arguments)
    path = overrides.pop("config", None)
    show = overrides.pop("print_config", False)
    config = load(Path(path) if path else None, overrides)
    given = set(overrides) & set(IGNORED)
    for key in sorted(given):
        print(f"{key} is not needed: {IGNORED[key]}", file=sys.stderr)
    if show:
        print(config.model_dump_json(indent=2, exclude=set(SECRETS)))
        return 0
    from services.training.loop import train

    train(config)
    return 0
