"""The README.md of a trained model: what it is made from, what may be done with it, and how good it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from services.training import summary
from services.training.config import TrainingConfig
from services.training.session import Session
from shared.provenance import UNKNOWN_LICENCE

CARD_FILE = "README.md"

#: What an evaluation's figures are, in this order.
_MEANINGS = {
    "mel": "mean absolute log-mel difference of reconstructed slices",
    "kl": "KL divergence of posterior from prior, nats a frame",
    "duration": "loss of the duration predictor, per token",
    "generator": "adversarial loss",
    "feature_maps": "feature-matching loss",
    "discriminator": "loss of the discriminator",
    "loss": "what the generator minimises, weighted",
    "mel_distance": "mean absolute log-mel difference of speech from recording, aligned by dynamic time warping",
}
#: Keys that tell where things lie on the machine that it was trained on, and nothing about the model.
_PLACES = frozenset({"output_dir", "store", "cache_dir", "run_name", "resume_from_checkpoint"})
#: A name on the hub: an owner and a repository.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_card(session: Session, folder: Path, step: int) -> Path:
    """Write ``README.md`` into a model's folder.

    Args:
        session: The run that made the model.
        folder: The model's.
        step: The step of the run that the model is of: its last, or that of its best checkpoint.

    Returns:
        The card's path.
    """
    evaluated, figures = _newest_evaluation(session, step)
    text = f"---\n{_metadata(session, figures)}\n---\n\n" + "\n\n".join(
        part
        for part in (
            _introduction(session),
            _usage(session),
            _licence(session),
            _data(session),
            _evaluation(session, evaluated, figures),
            _training(session, step),
        )
        if part
    )
    path = folder / CARD_FILE
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _newest_evaluation(session: Session, step: int) -> tuple[int, dict[str, float]]:
    """The last evaluation that was not after a step: where it was, and its figures; none if there was none."""
    for entry in reversed(session.state.log_history):
        values = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        if values and entry["step"] <= step:
            return entry["step"], values
    return 0, {}


def _metadata(session: Session, figures: Mapping[str, float]) -> str:
    """The YAML at the card's head, as the hub reads it."""
    config = session.config
    dataset = _on_hub(config.dataset_name)
    metadata = ModelCardData(
        language=_language(session),
        license=_licence_id(session.provenance.licence),
        license_name=_licence_name(session.provenance.licence),
        library_name="transformers",
        pipeline_tag="text-to-speech",
        tags=["text-to-speech", "vits", *(["multi-speaker"] if session.base.speakers else [])],
        base_model=None if config.train_from_scratch else _on_hub(config.model_name_or_path),
        datasets=[dataset] if dataset else None,
        metrics=list(figures) or None,
    )
    return metadata.to_yaml()


def _language(session: Session) -> str | None:
    """What the text front end reads."""
    spec = session.base.front_end.spec
    found = spec.get("language") or str(spec.get("espeak_voice", "")).partition("-")[0]
    return str(found) if found else None


def _on_hub(reference: str | None) -> str | None:
    """A reference that is a name on the hub, and nothing where it is a folder or in the store."""
    if reference and _HUB_NAME.fullmatch(reference) and not Path(reference).exists():
        return reference
    return None


def _is_one_licence(licence: str) -> bool:
    return licence != UNKNOWN_LICENCE and re.fullmatch(r"[\w.+-]+", licence) is not None


def _licence_id(licence: str) -> str | None:
    """The hub knows single licences by their identifier in small letters; everything else is ``other``."""
    if licence == UNKNOWN_LICENCE:
        return None
    return licence.lower() if _is_one_licence(licence) else "other"


def _licence_name(licence: str) -> str | None:
    return None if licence == UNKNOWN_LICENCE or _is_one_licence(licence) else licence


def _introduction(session: Session) -> str:
    config, architecture = session.config, session.generator.config
    speakers = session.base.speakers
    data, rate = _public(str(config.dataset_name)), f"{architecture.sampling_rate / 1000:g} kHz"
    parts = [
        f"# {config.published_name}",
        f"A text-to-speech model of the VITS architecture at {rate}, {_beginning(config)} on `{data}`.",
    ]
    if speakers:
        named = ", ".join(f"{name} ({number})" for name, number in list(speakers.items())[:50])
        parts.append(
            f"Its {len(speakers)} speakers and their ids: {named}{', …' if len(speakers) > 50 else ''}."
        )
    return "\n\n".join(parts)


def _beginning(config: TrainingConfig) -> str:
    """What it was trained from: from scratch nothing but sizes and symbols."""
    base = config.model_name_or_path
    if not config.train_from_scratch:
        return f"fine-tuned from `{_public(base)}`"
    architecture, symbols = (_public(other or base) for other in (config.config_name, config.tokenizer_name))
    return (
        f"trained from scratch (the architecture of `{architecture}`, the symbols of `{symbols}`, "
        "no weights of another model)"
    )


def _public(reference: str) -> str:
    """A reference without the way to it on the machine that it was trained on."""
    return Path(reference).name if Path(reference).expanduser().exists() else reference


def _usage(session: Session) -> str:
    config = session.config
    name = config.hub_model_id or config.published_name
    lines = ["## How to use it"]
    stock = (
        session.generator.config.model_type == "vits" and session.base.front_end.spec["kind"] == "characters"
    )
    if stock:
        lines.append(
            "```python\n"
            "from transformers import pipeline\n\n"
            f'speech = pipeline("text-to-speech", model="{name}")("…")\n'
            'print(speech["audio"].shape, speech["sampling_rate"])\n'
            "```"
        )
    lines.append(
        ("Or with the VITS Suite" if stock else "With the VITS Suite, which has its text front end")
        + ", from the folder that holds this card:\n\n"
        "```bash\n"
        'vits say "…" -o speech.wav --checkpoint .\n'
        "vits export .        # into three ONNX graphs, for 'vits serve'\n"
        "```"
    )
    lines.append(
        "`discriminator.safetensors` is what fine-tuning it further starts from; to speak it is not needed."
    )
    return "\n\n".join(lines)


def _licence(session: Session) -> str:
    provenance = session.provenance
    owners = (
        "of the recordings"
        if session.config.train_from_scratch
        else "of the base model and of the recordings"
    )
    lines = [
        "## Licence and sources",
        f"The licence is not known: ask the owners {owners} before you use it."
        if provenance.licence == UNKNOWN_LICENCE
        else f"Licence: {provenance.licence}",
    ]
    if provenance.sources:
        lines.append("\n".join(f"- {_public(source)}" for source in provenance.sources))
    lines.append(
        f"Consent of the speaker: {provenance.consent}"
        if provenance.consent
        else "How the speaker agreed to this use of their voice is not recorded."
    )
    return "\n\n".join(lines)


def _data(session: Session) -> str:
    rows = [
        "## Data",
        "",
        "| split | recordings | hours | shortest | longest | left out |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    splits = summary.splits(session)
    rows += [
        f"| {split.name} | {len(split.seconds)} | {split.hours:.2f} | {min(split.seconds):.1f} s "
        f"| {max(split.seconds):.1f} s | {split.left_out} |"
        for split in splits
    ]
    reasons = [
        f"- {len(reason.dropped)} of {split.name}: {reason.text}"
        for split in splits
        for reason in split.reasons
    ]
    return "\n".join(rows + (["", "Left out:", "", *reasons] if reasons else []))


def _evaluation(session: Session, step: int, values: Mapping[str, float]) -> str:
    if not values:
        return ""
    rows = [
        f"| `{name}` | {values[name]:.4g} | {text} |" for name, text in _MEANINGS.items() if name in values
    ]
    head = f"On {summary.heard(session)}, in the evaluation at step {step}; of each, less is better."
    return "\n".join(
        ["## Evaluation", "", head, "", "| measure | value | what it is |", "|---|--:|---|", *rows]
    )


def _training(session: Session, step: int) -> str:
    changed, _ = summary.configuration(session.config)
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions().items())
    shown = {
        key: _public(value) if isinstance(value, str) else value
        for key, value in changed.items()
        if key not in _PLACES
    }
    taken = (
        ""
        if step == session.step
        else f" The model is that of step {step}, the best by `{session.config.metric_for_best_model}`."
    )
    return (
        "## Training\n\n"
        f"{session.step} steps, {session.state.epoch:.1f} epochs, by the VITS Suite ({versions}).{taken} What was "
        "set to something else than its default; all of it is in `training_config.json`:\n\n"
        f"```json\n{json.dumps(shown, indent=2, ensure_ascii=False)}\n```"
    )
