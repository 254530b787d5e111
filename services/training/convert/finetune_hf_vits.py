"""A folder that ``finetune-hf-vits`` wrote, its final model or a ``checkpoint-N``, as a clean model folder.

Its final folder keeps the discriminator inside the model's own file; its checkpoints keep it in a second
file, have weight norm where the final model has none, and leave configuration and tokenizer in the folder
above. Optimisers and random states are not read: they are pickles, and belong to that trainer alone.
"""

from __future__ import annotations

from pathlib import Path

from transformers import VitsConfig

from services.training.convert import discriminators
from services.training.convert.weights import (
    State,
    fitted,
    listed,
    mismatches,
    read_file,
    with_new_names,
)
from shared.errors import ModelError
from shared.folders import whole_folder
from shared.modeling import VitsForTraining, save_model
from shared.modeling.loading import load_config
from shared.provenance import Provenance

#: Fields of its configuration that only its own trainer reads.
_FOREIGN_FIELDS = (
    "discriminator_kernel_size",
    "discriminator_stride",
    "discriminator_periods",
    "discriminator_period_channels",
    "discriminator_scale_channels",
    "segment_size",
    "hop_length",
)
_EMBEDDED = "discriminator."


def convert(
    source: Path, output: Path, *, licence: str | None = None, with_discriminator: bool = True
) -> list[str]:
    """Convert a folder of ``finetune-hf-vits``.

    Args:
        source: Its output folder, or a ``checkpoint-N`` in it.
        output: The folder to write; a model folder that is there is replaced.
        licence: What to write into ``provenance.json``, where the folder does not say.
        with_discriminator: Whether to convert its discriminator, too.

    Returns:
        What the user should know beside that it worked.

    Raises:
        ModelError: The folder cannot be used, or ``output`` is no model folder; nothing is written.
    """
    described = source if (source / "config.json").is_file() else source.resolve().parent
    with whole_folder(output, sources=[source, described]) as folder:
        generator, discriminator = read_states(source)
        model = build(generator, load_config(described), where=source)
        save_model(model, folder, companions=described)
        if discriminator and with_discriminator:
            weights = discriminators.from_state(discriminator, where=source, embedded=True)
            discriminators.save(weights, folder)
        provenance = Provenance.read(described)
        sources = (*provenance.sources, f"fine-tuned with finetune-hf-vits ({source.resolve().name})")
        changes = {"sources": sources} | ({"licence": licence} if licence else {})
        provenance.model_copy(update=changes).write(folder)
    notes = []
    if not with_discriminator:
        notes.append("without its discriminator: training starts with a fresh one")
    elif not discriminator:
        notes.append("it has no discriminator (the hub's copies have none): training starts with a fresh one")
    if model.config.num_speakers > 1:
        notes.append(
            f"it has {model.config.num_speakers} speakers, and their names were never saved: write them into "
            'speakers.json, as {"NAME": ID, …}'
        )
    if not (described / "vocab.json").is_file():
        notes.append(
            "it has no tokenizer: copy vocab.json and tokenizer_config.json of the model it was trained from into "
            "the new folder"
        )
    return notes


def read_states(source: Path) -> tuple[State, State]:
    """The generator's weights and the discriminator's (or none), from every file of weights in a folder.

    Raises:
        ModelError: There are none, or a file cannot be read.
    """
    if not source.is_dir():
        raise ModelError(f"There is no folder {source}. Give finetune-hf-vits's output folder.")
    files = sorted(source.glob("model*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    generator: State = {}
    discriminator: State = {}
    for file in files:
        content = read_file(file)
        if not isinstance(content, dict):
            raise ModelError(f"{file} holds a {type(content).__name__}, not a model's weights.")
        for key, value in content.items():
            name = key.removeprefix("module.")  # of a distributed training's wrapper
            if name.startswith(_EMBEDDED):
                discriminator[name.removeprefix(_EMBEDDED)] = value
            elif name.startswith("discriminators."):
                discriminator[name] = value
            else:
                generator[name] = value
    if not generator:
        checkpoints = ", ".join(sorted(path.name for path in source.glob("checkpoint-*"))) or "none"
        raise ModelError(
            f"{source} has no model.safetensors or pytorch_model.bin with a generator in it. A training that was "
            f"stopped has its weights in checkpoint-N folders; here: {checkpoints}."
        )
    return generator, discriminator


def build(state: State, config: VitsConfig, *, where: Path) -> VitsForTraining:
    """The model of a generator's weights.

    Raises:
        ModelError: The weights are not those of the configuration.
    """
    state = {name: value.float() for name, value in with_new_names(state).items()}
    for field in _FOREIGN_FIELDS:
        config.__dict__.pop(field, None)
    # A checkpoint's configuration is that of the base, which may have had fewer tokens and speakers.
    if "text_encoder.embed_tokens.weight" in state:
        config.vocab_size = len(state["text_encoder.embed_tokens.weight"])
    if "embed_speaker.weight" in state:
        config.num_speakers, config.speaker_embedding_size = state["embed_speaker.weight"].shape
    model = VitsForTraining(config)
    expected = model.state_dict()
    weights = fitted(state, expected)
    problems = mismatches(weights, expected)
    if problems:
        raise ModelError(
            f"The weights in {where} are not those of its config.json: the copy is incomplete, or the two belong to "
            f"different models:\n{listed(problems)}"
        )
    model.load_state_dict(weights)
    model.train(False)
    return model
