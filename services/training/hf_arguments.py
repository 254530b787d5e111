"""What becomes of every ``transformers.TrainingArguments`` key (4.35), and of finetune-hf-vits's own.

Configurations written for finetune-hf-vits carry keys of ``transformers``' trainer. None is read by guesswork:
each has one row here, which says whether it is implemented, read under another name, not needed (and
why), or refused (and what to do instead). A refused key is accepted at a value that asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["implemented", "renamed", "ignored", "refused"]


@dataclass(frozen=True)
class Argument:
    """One key.

    Attributes:
        default: Its default in ``transformers``.
        fate: What becomes of it here.
        note: Implemented: how its meaning differs, if it does. Renamed: the key that takes its value.
            Ignored: why it is not needed. Refused: what to do instead.
        harmless: Values at which a refused key is accepted.
    """

    default: Any
    fate: Fate
    note: str = ""
    harmless: tuple[Any, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a value asks for nothing that is refused."""
        if isinstance(value, str):
            return value.lower() in {str(harmless).lower() for harmless in self.harmless}
        return value in self.harmless


def _implemented(default: Any, note: str = "") -> Argument:
    return Argument(default, "implemented", note)


def _renamed(default: Any, key: str) -> Argument:
    return Argument(default, "renamed", key)


def _ignored(default: Any, reason: str) -> Argument:
    return Argument(default, "ignored", reason)


def _refused(default: Any, instead: str, *harmless: Any) -> Argument:
    return Argument(default, "refused", instead, (default, None, *harmless))


_NO_WRAPPER = "gradients are averaged explicitly, without a wrapper to be told so"
_ONE_DEVICE = "the networks fit on one device; start one process for each with torchrun"
_WHOLE_STEPS = "in whole steps, never as a share of the run"
_FLOAT32 = "evaluation runs in float32, whatever the precision of training"

#: ``transformers.TrainingArguments`` of release 4.35, in its order.
TRAINING_ARGUMENTS: dict[str, Argument] = {
    "output_dir": _implemented("required"),
    "overwrite_output_dir": _implemented(False, "start over, even if output_dir has checkpoints"),
    "do_train": _implemented(False),
    "do_eval": _implemented(False, "true if eval_strategy is steps or epoch and nothing else is said"),
    "do_predict": _refused(False, "speak texts with 'vits say' when the model is trained"),
    "evaluation_strategy": _renamed("no", "eval_strategy"),
    "prediction_loss_only": _ignored(False, "evaluation computes losses and speaks samples, and keeps no predictions"),
    "per_device_train_batch_size": _implemented(8),
    "per_device_eval_batch_size": _implemented(8),
    "per_gpu_train_batch_size": _renamed(None, "per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _renamed(None, "per_device_eval_batch_size"),
    "gradient_accumulation_steps": _implemented(1),
    "eval_accumulation_steps": _ignored(None, "evaluation keeps sums, not predictions"),
    "eval_delay": _refused(0, "give a larger eval_steps"),
    "learning_rate": _implemented(5e-5),
    "weight_decay": _implemented(0.0, "the default of PyTorch's AdamW, which finetune-hf-vits uses"),
    "adam_beta1": _implemented(0.9),
    "adam_beta2": _implemented(0.999),
    "adam_epsilon": _implemented(1e-8),
    "max_grad_norm": _implemented(1.0, "for each network by itself"),
    "num_train_epochs": _implemented(3.0),
    "max_steps": _implemented(-1, "0 is an error: -1 says that it is not set"),
    "lr_scheduler_type": _implemented(
        "linear", "linear, cosine, constant and constant_with_warmup; read if do_step_schedule_per_epoch is false"
    ),
    "warmup_ratio": _implemented(0.0),
    "warmup_steps": _implemented(0),
    "log_level": _ignored("passive", "progress and warnings are always shown"),
    "log_level_replica": _ignored("warning", "only the main process speaks"),
    "log_on_each_node": _ignored(True, "only the main process speaks"),
    "logging_dir": _ignored(None, "logs go to OUTPUT_DIR/runs"),
    "logging_strategy": _implemented("steps"),
    "logging_first_step": _ignored(False, "the first step is always logged"),
    "logging_steps": _implemented(500, _WHOLE_STEPS),
    "logging_nan_inf_filter": _ignored(True, "a loss that is not a number stops the run"),
    "save_strategy": _implemented("steps"),
    "save_steps": _implemented(500, _WHOLE_STEPS),
    "save_total_limit": _implemented(None),
    "save_safetensors": _refused(True, "checkpoints are always safetensors and JSON"),
    "save_on_each_node": _refused(False, "give every node the same store or output_dir"),
    "no_cuda": _renamed(False, "use_cpu"),
    "use_cpu": _implemented(False),
    "use_mps_device": _ignored(False, "a device that is there is used; use_cpu keeps to the processor"),
    "seed": _implemented(42),
    "data_seed": _refused(None, "seed decides the order of recordings as well"),
    "jit_mode_eval": _refused(False, "leave it out; torch_compile compiles the networks of training and evaluation"),
    "use_ipex": _refused(False, "leave it out; PyTorch's own oneDNN is used, and bf16 where the processor has it"),
    "bf16": _implemented(False),
    "fp16": _implemented(False, "without a GPU: bf16 where the processor has it, else fp32"),
    "fp16_opt_level": _ignored("O1", "mixed precision is PyTorch's, not Apex's"),
    "half_precision_backend": _refused("auto", "mixed precision is PyTorch's: leave it out", "cuda_amp", "cpu_amp"),
    "bf16_full_eval": _ignored(False, _FLOAT32),
    "fp16_full_eval": _ignored(False, _FLOAT32),
    "tf32": _refused(None, "bf16 is faster still on the GPUs that have tf32", False),
    "local_rank": _ignored(-1, "the launcher's environment says it"),
    "ddp_backend": _refused(None, "nccl is used on GPUs and gloo on processors", "nccl", "gloo"),
    "tpu_num_cores": _refused(None, "train on GPUs or processors; TPUs are not supported"),
    "tpu_metrics_debug": _refused(False, "train on GPUs or processors; TPUs are not supported"),
    "debug": _refused("", "a loss that is not a number stops the run and is named", [], ()),
    "dataloader_drop_last": _ignored(
        False,
        "no recording is dropped: some are repeated to fill up a batch, and too few for a full one make smaller ones",
    ),
    "eval_steps": _implemented(None, f"{_WHOLE_STEPS}; once an epoch when left out"),
    "dataloader_num_workers": _implemented(0),
    "past_index": _refused(-1, "the networks have no memory of earlier outputs"),
    "run_name": _implemented(None, "also the run's name in the store"),
    "disable_tqdm": _ignored(None, "progress is shown on a terminal and logged as lines elsewhere"),
    "remove_unused_columns": _ignored(True, "only the audio, text and speaker columns are read"),
    "label_names": _ignored(None, "the recordings are the labels"),
    "load_best_model_at_end": _implemented(False),
    "metric_for_best_model": _implemented(None, "one of evaluation's own measures"),
    "greater_is_better": _implemented(None, "of every measure there is, less is better"),
    "ignore_data_skip": _ignored(False, "resuming goes on from the sampler's position at once"),
    "fsdp": _refused("", _ONE_DEVICE, False, [], ()),
    "fsdp_min_num_params": _refused(0, _ONE_DEVICE),
    "fsdp_config": _refused(None, _ONE_DEVICE, {}, {"min_num_params": 0, "xla": False, "xla_fsdp_grad_ckpt": False}),
    "fsdp_transformer_layer_cls_to_wrap": _refused(None, _ONE_DEVICE),
    "deepspeed": _refused(None, _ONE_DEVICE, False, ""),
    "label_smoothing_factor": _refused(0.0, "there are no classes to smooth"),
    "optim": _implemented("adamw_torch", "adamw_torch, for which every other AdamW is read, and sgd"),
    "optim_args": _refused(None, "use adam_beta1, adam_beta2, adam_epsilon and weight_decay", ""),
    "adafactor": _refused(False, "use optim adamw_torch or sgd"),
    "group_by_length": _implemented(False, "by frames"),
    "length_column_name": _ignored("length", "lengths are those of the recordings"),
    "report_to": _implemented(None, "tensorboard, wandb, all or none"),
    "ddp_find_unused_parameters": _ignored(None, _NO_WRAPPER),
    "ddp_bucket_cap_mb": _ignored(None, _NO_WRAPPER),
    "ddp_broadcast_buffers": _ignored(None, _NO_WRAPPER),
    "dataloader_pin_memory": _implemented(True),
    "skip_memory_metrics": _ignored(True, "benchmarks/training.py measures memory"),
    "use_legacy_prediction_loop": _ignored(False, "evaluation has one loop"),
    "push_to_hub": _implemented(False, "the final model, once"),
    "resume_from_checkpoint": _implemented(None, "the newest complete checkpoint when left out; false for none"),
    "hub_model_id": _implemented(None, "has to be given with push_to_hub"),
    "hub_strategy": _ignored("every_save", "the final model is pushed once; checkpoints go to the store"),
    "hub_token": _implemented(None, "rather the environment's HUB_TOKEN, or HF_TOKEN for both"),
    "hub_private_repo": _implemented(False),
    "hub_always_push": _ignored(False, "the final model is pushed once; checkpoints go to the store"),
    "gradient_checkpointing": _implemented(False),
    "gradient_checkpointing_kwargs": _ignored(None, "how to recompute is known"),
    "include_inputs_for_metrics": _ignored(False, "evaluation has its own measures"),
    "fp16_backend": _refused("auto", "mixed precision is PyTorch's: leave it out", "cuda_amp", "cpu_amp"),
    "push_to_hub_model_id": _renamed(None, "hub_model_id"),
    "push_to_hub_organization": _refused(None, "write hub_model_id as 'organization/name'"),
    "push_to_hub_token": _renamed(None, "hub_token"),
    "_n_gpu": _ignored(-1, "torchrun starts one process for each GPU"),
    "mp_parameters": _refused("", _ONE_DEVICE),
    "auto_find_batch_size": _refused(
        False, "set max_frames_per_batch, or a smaller per_device_train_batch_size and more gradient_accumulation_steps"
    ),
    "full_determinism": _implemented(False),
    "torchdynamo": _refused(None, "set torch_compile instead"),
    "ray_scope": _ignored("last", "training runs one configuration"),
    "ddp_timeout": _implemented(1800),
    "torch_compile": _implemented(False),
    "torch_compile_backend": _refused(None, "set torch_compile, which uses inductor"),
    "torch_compile_mode": _refused(None, "set torch_compile, which uses the default mode", "default"),
    "dispatch_batches": _ignored(None, "every process reads its own share"),
    "split_batches": _refused(False, "divide per_device_train_batch_size by the number of processes"),
    "include_tokens_per_second": _ignored(False, "seconds a step are always logged"),
    "neftune_noise_alpha": _refused(None, "leave it out: VITS has its own dropout"),
}  # fmt: skip

#: Keys of finetune-hf-vits itself that are no keys of ours.
ANCESTORS_OWN: dict[str, Argument] = {
    "feature_extractor_name": _ignored(None, "features follow the model's own rate"),
    "overwrite_cache": _ignored(False, "the cache is keyed by what the recordings are, so it is never stale"),
    "uroman_path": _ignored(None, "uroman runs inside the process, without Perl"),
    "use_fast_tokenizer": _ignored(True, "there is one front-end"),
    "use_auth_token": _ignored(None, "the environment's HF_TOKEN is read"),
    "trust_remote_code": _refused(
        False, "convert the model first: nothing that is downloaded is run as code"
    ),
}

#: Every key that means something here, though perhaps not what it meant there.
KNOWN: dict[str, Argument] = TRAINING_ARGUMENTS | ANCESTORS_OWN


@dataclass
class Screened:
    """A configuration without the keys that are not ours.

    Attributes:
        values: Our keys.
        problems: Refused keys, and keys given twice under two names.
        remarks: One line for each key that is not needed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def screen(values: Mapping[str, Any]) -> Screened:
    """Sort out what is not ours. A key that is null is the same as a key left out."""
    screened = Screened()
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        row = KNOWN.get(key)
        if row is None or row.fate == "implemented":
            screened.values[key] = value
        elif row.fate == "ignored":
            screened.remarks.append(f"{key} is not needed: {row.note}")
        elif row.fate == "refused" and not row.accepts(value):
            screened.problems.append(f"{key}: {value!r} is not offered: {row.note}")
    # After the loop above, so that a key's own name is known whatever the order.
    for key, row in KNOWN.items():
        if (
            key in given
            and row.fate == "renamed"
            and screened.values.setdefault(row.note, given[key]) != given[key]
        ):
            screened.problems.append(
                f"{key} and {row.note} are the same key under two names, and disagree: keep {row.note}"
            )
    return screened
