"""What ``vits train`` tells about configurations: ``--help``, ``--help-markdown`` and ``--print-config``."""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from services.training.config import SECRETS, SECTIONS, TrainingConfig
from services.training.hf_arguments import ANCESTORS_OWN, KNOWN, TRAINING_ARGUMENTS, Argument
from shared.store import default_store_url

_INTRODUCTION = """\
usage: vits train [--config] FILE.json ... [--KEY VALUE ...]

Fine-tune a VITS or MMS model on one person's recordings. Every key can stand in a JSON file, on the
command line as --KEY VALUE (which wins), or in both. The final model goes to output_dir, checkpoints to
output_dir/checkpoint-N, and both to the object store. A run that was stopped goes on from its last
checkpoint when it is started again.

examples:
  vits train --config configs/demo.json
  vits train --config configs/spa.json --preset 8gb
  vits train --config configs/spa.json --dataset_name ./my-recordings --num_train_epochs 100
  vits train --config configs/spa.json --config configs/low-memory.json
  vits train --config configs/spa.json --print-config

  --config FILE    a JSON configuration (or simply the file, as first argument); of several, each goes over the
                   one before it; a bare name such as spa.json is also looked up among the shipped ones, in
                   $VITS_CONFIGS (default: configs)
  --preset NAME    one of the shipped files over the others, by the GPU's memory: 8gb, 16gb, 24gb; or production
  --store URL      where models are published: file://./store, s3://bucket/prefix (default: $VITS_STORE)
  --profile [N]    profile N steps (default: 3) from the beginning and stop: a table of where the time goes and a
                   trace, in OUTPUT_DIR/profile; nothing is saved
  --print-config   show the configuration with all defaults, and what they come to, and stop
  --help-markdown  show all of this as docs/configuration.md
"""

_PAGE = """\
# Configuration

<!-- Written by `vits train --help-markdown > docs/configuration.md`; a test tells when it is stale. -->

`vits train` takes its keys from JSON files and from the command line:

```
vits train --config spa.json --config low-memory.json --dataset_name ./my-recordings --learning_rate 1e-5
```

- Of several files each goes over the one before it, and the command line over them all. A bare name is also
  looked up among the shipped configurations, which [configs/README.md](../configs/README.md) lists.
- `--preset 8gb`, `16gb`, `24gb` (by the memory of a GPU) and `production` each put one of the shipped files over those
  that are given.
- `--key value`, `--key=value` and a bare `--flag` (true) are the same. Lists are written `--key one,two`,
  and lists of texts as JSON: `--eval_sample_texts '["Hola.", "Buenos días."]'`.
- Null is the same as leaving a key out. In a file, keys that begin with `_` or `//` are comments; `//` comments
  to the end of a line and trailing commas are allowed.
- Secrets come from the environment: `HF_TOKEN` to read from the hub, `HUB_TOKEN` to write to it (`HF_TOKEN` when
  it is not set), and `WANDB_API_KEY`, which Weights & Biases reads itself. A token that stands in a file or on the
  command line is used, with a warning, and neither shown nor stored.
- Everything that is wrong is said at once, before anything is loaded. A key that has no effect beside the others, such
  as `eval_steps` where nothing is evaluated, is accepted with a line that says why, and what it needs.
- `--print-config` shows the whole configuration, and under `_resolved` what its defaults come to. The
  configuration is stored with every checkpoint as `training_config.json`, which can be given to `--config` again.
"""

_TABLE_OF_ARGUMENTS = """\
## Keys of `transformers.TrainingArguments`

Every key of release 4.35, which finetune-hf-vits is written for. *Not needed*: accepted with a line that says why.
*Refused*: an error that says what to do instead, unless the value asks for nothing.
"""

_TABLE_OF_ANCESTOR = """\
## Keys of finetune-hf-vits

Those that are not in the tables above have the meanings and defaults that they have there, but for
`full_generation_sample_text`, which is empty here. These are not needed or refused:
"""


def _type_name(annotation: Any) -> str:
    """A field's type in a few words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type_name(parts[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return " or ".join(_type_name(part) for part in parts if part is not type(None))
    if get_origin(annotation) is list:
        item = _type_name(parts[0])
        return '["TEXT",…]' if item == "TEXT" else f"{item},…"
    if get_origin(annotation) is dict:
        return f'{{"{_type_name(parts[0])}":{_type_name(parts[1])},…}}'
    if get_origin(annotation) is tuple:
        return f"[{','.join(_type_name(part) for part in parts)}]"
    if get_origin(annotation) is Literal:
        return "|".join(str(part) for part in parts)
    name: str = annotation.__name__
    return {"int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER", "str": "TEXT"}.get(name, name)


def _value_name(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _default_name(field: FieldInfo) -> str:
    return "required" if field.is_required() else _value_name(field.get_default())


def _sections() -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """Each section's title and keys, in order."""
    fields = TrainingConfig.model_fields
    names = list(fields)
    starts = [names.index(first) for first in SECTIONS.values()]
    for title, start, end in zip(SECTIONS, starts, [*starts[1:], len(names)], strict=True):
        yield title, {name: fields[name] for name in names[start:end]}


def help_text() -> str:
    """The text of ``vits train --help``: every key with its default and meaning."""
    lines = [_INTRODUCTION]
    for title, fields in _sections():
        lines.append(f"{title} (default):")
        for name, field in fields.items():
            lines.append(f"  --{name} {_type_name(field.annotation)} ({_default_name(field)})")
            lines.append(textwrap.indent(textwrap.fill(str(field.description), 100), " " * 8))
        lines.append("")
    others = {
        fate: ", ".join(sorted(key for key, row in KNOWN.items() if row.fate == fate))
        for fate in ("ignored", "refused")
    }
    lines.append(textwrap.fill(f"accepted and not needed: {others['ignored']}", 108))
    lines.append(textwrap.fill(f"refused, with what to do instead: {others['refused']}", 108))
    return "\n".join(lines)


def markdown() -> str:
    """The text of ``docs/configuration.md``."""
    blocks = [_PAGE]
    for title, fields in _sections():
        rows = [
            (
                f"`{name}`",
                f"`{_type_name(field.annotation)}`",
                f"`{_default_name(field)}`",
                str(field.description),
            )
            for name, field in fields.items()
        ]
        blocks.append(f"## {title}\n\n{_table(('key', 'value', 'default', 'meaning'), rows)}")
    blocks.append(f"{_TABLE_OF_ARGUMENTS}\n{_argument_table(TRAINING_ARGUMENTS)}")
    blocks.append(f"{_TABLE_OF_ANCESTOR}\n{_argument_table(ANCESTORS_OWN)}")
    return "\n".join(blocks)


def _argument_table(arguments: Mapping[str, Argument]) -> str:
    rows = [
        (f"`{key}`", f"`{_value_name(row.default) or 'empty'}`", _fate(key, row))
        for key, row in arguments.items()
    ]
    return _table(("key", "default there", "here"), rows)


def _fate(key: str, row: Argument) -> str:
    """What becomes of a key, and how that differs from what it means in ``transformers``."""
    if row.fate == "implemented":
        field = TrainingConfig.model_fields[key]
        differs = not field.is_required() and field.get_default() != row.default
        default = f"default `{_default_name(field)}`" if differs else ""
        return "; ".join(filter(None, ("Implemented", default, row.note)))
    if row.fate == "renamed":
        return f"Read as `{row.note}`"
    return f"{'Not needed' if row.fate == 'ignored' else 'Refused'}: {row.note}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in escaped)


def printed(config: TrainingConfig) -> str:
    """The text of ``--print-config``: JSON that can be given to ``--config`` again, without the secrets."""
    values = config.model_dump(mode="json", exclude=set(SECRETS))
    return json.dumps(values | {"_resolved": resolved(config)}, indent=2, ensure_ascii=False)


def resolved(config: TrainingConfig) -> dict[str, str]:
    """What a configuration comes to, as far as that is known without model and data."""
    joint = (
        f"{config.max_steps}"
        if config.max_steps >= 0
        else f"{config.num_train_epochs:g} times those of an epoch"
    )
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    precision = "fp16 on a GPU, else bf16 or fp32" if config.fp16 else "bf16" if config.bf16 else "fp32"
    judge = config.discriminator_learning_rate or config.learning_rate
    clip = config.discriminator_max_grad_norm
    first = "0" if config.reconstruction_stage_steps else "a quarter of the joint ones"
    if config.warm_up_new_modules_steps is not None:
        first = str(config.warm_up_new_modules_steps)
    return {
        "model in the store": f"{config.published_name}@{config.alias} in {config.store or default_store_url()}",
        "run": config.run_id,
        "precision": precision,
        "recordings of a step": f"{batch} on each device"
        + (" or fewer, by max_frames_per_batch" if config.max_frames_per_batch else ""),
        "steps of joint training": joint,
        "steps of the first stage": f"{first}, if the base has new modules",
        "learning rate": f"generator {config.learning_rate:g}, discriminator {judge:g}; {_course(config)}",
        "gradient norm": f"generator {config.max_grad_norm:g}, discriminator "
        f"{config.max_grad_norm if clip is None else clip:g} at most (0: any)",
        "log": _every(config.logging_interval(0)),
        "evaluation": _every(config.evaluation_interval(0)) if config.do_eval else "sample texts only",
        "checkpoints": _every(config.save_interval(0)) + "; the last step always",
        "best model": f"by {config.metric_for_best_model}"
        if config.keep_best or config.load_best_model_at_end
        else "not kept",
        "hub": str(config.hub_model_id) if config.push_to_hub else "not pushed",
    }  # fmt: skip


def _every(steps: int | None) -> str:
    """An interval in words; 0 stands for an epoch, whose steps are not known yet."""
    if steps is None:
        return "never"
    return f"every {steps} steps" if steps else "once an epoch"


def _course(config: TrainingConfig) -> str:
    """The learning rate's course in words."""
    rising = (
        f"rising over {config.warmup_steps} steps, then "
        if config.warmup_steps
        else f"rising over {config.warmup_ratio:.3g} of all steps, then "
        if config.warmup_ratio
        else ""
    )
    if config.do_step_schedule_per_epoch:
        return f"{rising}times {config.lr_decay} each epoch"
    return rising + config.lr_scheduler_type.replace("_", " ")
