"""The model that a run starts from: a folder, a version in the store, or a name on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import VitsConfig

from services.training.config import TrainingConfig
from services.training.discriminator import stored_periods
from shared.container import mount_advice
from shared.errors import ModelError, NotFoundError, UserError, nearest_beside
from shared.manifests import model_folder
from shared.modeling import VitsForTraining, load_model, read_discriminator
from shared.modeling.loading import fetch_from_hub, load_config
from shared.modeling.presets import apply_presets
from shared.modeling.speakers import add_speakers, replace_speakers
from shared.modeling.vocabulary import resize_vocabulary
from shared.modeling.warm_start import new_model, warm_start
from shared.provenance import Provenance
from shared.registry import Registry
from shared.store import Store
from shared.text import FRONT_END_FILE, FrontEnd


@dataclass
class Base:
    """A loaded base."""

    folder: Path
    reference: str
    """What it is called in a lineage: a version of the store (``name/version``), whatever alias named it, or else the
    folder or the hub's name. A folder's bare name begins with ``./``, lest it be taken for the store's."""
    model: VitsForTraining
    front_end: FrontEnd
    discriminator: dict[str, Tensor] | None
    """Stored weights, or none for a base without a discriminator."""
    untrained: tuple[str, ...]
    """Modules that are fresh and have to be taught before the rest."""
    speakers: dict[str, int]
    """Names and ids of the speakers that it knows."""
    provenance: Provenance
    notes: list[str] = field(default_factory=list)
    """What the user should know of how it was made: a line each."""
    resumed_optimizers: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Origin:
    """Where a run comes from that goes on; pickled on its way to other processes."""

    reference: str
    """What it began from, as a lineage calls it: its alias may have moved since."""
    checkpoint: Path
    """The folder of the state that it goes on from, which holds all that has become of the base."""


def find_base(config: TrainingConfig, store: Store, origin: Origin | None = None) -> tuple[Path, str]:
    """A local folder for what a run begins from, or began from.

    Args:
        config: Its ``model_name_or_path`` is what a new run begins from.
        store: The store.
        origin: Where a run comes from that goes on. If that is there no more, its checkpoint serves as well.

    Returns:
        The folder, and what the base is called in a lineage; see ``Base.reference``.

    Raises:
        NotFoundError: The reference is the store's own, and the store does not have it.
        HubUnreachableError: Only the hub could have it, and it cannot be reached.
    """
    if origin is None:
        return _find(config, store, config.model_name_or_path)
    try:
        return _find(config, store, origin.reference)
    except UserError:
        if not origin.checkpoint.is_dir():  # another machine's
            raise
        return origin.checkpoint, origin.reference


def _find(config: TrainingConfig, store: Store, reference: str) -> tuple[Path, str]:
    """A local folder for a reference, which, unlike other commands', the hub may have too.

    A folder wins; then the store, for a plain name, ``name@alias`` or ``name/version``; then the hub.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder, reference if "/" in reference else f"./{reference}"
    if reference.startswith((".", "/", "~")):
        near = nearest_beside(folder) or "."
        raise ModelError(f"model_name_or_path: there is no folder {reference}{near}{mount_advice('models')}")
    registry = Registry(store)
    try:
        version = registry.resolve("models", reference)
        return registry.fetch(version), version.reference
    except UserError as error:  # not in the store, or not even a name that a store could have
        is_the_stores = "@" in reference or model_folder(reference)
        if is_the_stores or ("/" not in reference and not isinstance(error, NotFoundError)):
            raise
    fetched = fetch_from_hub(
        reference, revision=config.model_revision, token=config.token, cache_dir=config.cache_dir
    )
    return fetched, reference


def load_base(config: TrainingConfig, store: Store, origin: Origin | None = None) -> Base:
    """Find the base, take over what the configuration wants of it, and make the rest afresh.

    Everything that is drawn here depends on the seed alone, so that every process of a run starts alike.

    Args:
        config: The configuration.
        store: The store.
        origin: Where a run comes from that goes on.

    Raises:
        UserError: It cannot be found or used.
    """
    folder, reference = find_base(config, store, origin)
    notes: list[str] = []
    if origin and folder == origin.checkpoint:
        notes.append(f"base: {reference} cannot be found any more; {folder} has all that came of it")
    old_front_end, front_end = _front_ends(config, folder, notes)
    if config.train_from_scratch:
        model = _from_scratch(config, folder, front_end, notes)
        _vary(config, model)
        return Base(
            folder=folder,
            reference=reference,
            model=model,
            front_end=front_end,
            discriminator=None,
            untrained=(),  # with everything new there is nothing that could teach the rest
            speakers={},
            provenance=Provenance(),
            notes=notes,
        )
    model, untrained = _from_weights(config, folder, notes)
    _vary(config, model)
    _fit_vocabulary(config, model, old_front_end, front_end, notes)
    discriminator = read_discriminator(folder)
    if discriminator is not None:
        new = sorted(set(config.discriminator_periods) - set(stored_periods(discriminator)))
        if new:
            notes.append(
                f"discriminator: its networks of period {_listed(map(str, new))} are initialised afresh"
            )
    return Base(
        folder=folder,
        reference=reference,
        model=model,
        front_end=front_end,
        discriminator=discriminator,
        untrained=untrained,
        speakers=_speakers(folder, model.config.num_speakers),
        provenance=Provenance.read(folder),
        notes=notes,
    )


def _vary(config: TrainingConfig, model: VitsForTraining) -> None:
    """Note in the model how much it shall vary when it speaks."""
    if config.noise_scale is not None:
        model.config.noise_scale = config.noise_scale
    if config.noise_scale_duration is not None:
        model.config.noise_scale_duration = config.noise_scale_duration


def _listed(items: Iterable[str], limit: int = 12) -> str:
    """Some of many, for a line."""
    named = list(items)
    return ", ".join(named[:limit]) + (f" and {len(named) - limit} more" if len(named) > limit else "")


# -- Weights ---------------------------------------------------------------------------------------


def _architecture(config: TrainingConfig, folder: Path) -> VitsConfig:
    """What the networks shall be like, as the base or ``config_name`` has it, and with presets."""
    return apply_presets(load_config(Path(config.config_name or folder).expanduser()), config.model_presets)


def _from_scratch(
    config: TrainingConfig, folder: Path, front_end: FrontEnd, notes: list[str]
) -> VitsForTraining:
    """An architecture with the weights that original VITS starts from."""
    architecture = _architecture(config, folder)
    architecture.vocab_size, architecture.pad_token_id = front_end.vocab_size, None
    architecture.sampling_rate = config.sampling_rate or architecture.sampling_rate
    model = new_model(architecture, seed=config.seed)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    notes.append(
        f"from scratch: {millions:.1f} million parameters, {architecture.sampling_rate} Hz; everything is new and "
        "learns in one stage"
    )
    return model


def _from_weights(
    config: TrainingConfig, folder: Path, notes: list[str]
) -> tuple[VitsForTraining, tuple[str, ...]]:
    """The base's weights in the architecture that is wanted, and the modules that have to be taught first.

    Raises:
        ModelError: Weights are missing or do not fit, and ``allow_missing_weights`` is not set.
    """
    own = load_config(folder)
    untrained = tuple(getattr(own, "untrained_modules", None) or ())
    if not (config.config_name or config.model_presets or config.allow_missing_weights):
        return load_model(folder), untrained
    architecture = _architecture(config, folder)
    architecture.vocab_size, architecture.pad_token_id = own.vocab_size, own.pad_token_id  # fitted by symbols
    start = warm_start(folder, architecture, seed=config.seed)
    if (start.fresh or start.unused) and not config.allow_missing_weights:
        raise ModelError(
            f"The weights in {folder} do not fit {config.config_name}: "
            f"{_listed([*start.fresh, *start.unused], 5)}. Set allow_missing_weights to initialise afresh what "
            "does not fit, or leave config_name out."
        )
    if start.fresh:
        notes.append(f"initialised afresh, as the base has no such weights: {_listed(start.fresh)}")
    if start.unused:
        notes.append(f"not used of the base's weights, having no place: {_listed(start.unused, 3)}")
    if start.everything_is_fresh:
        notes.append("nothing of the base fits: everything is new and learns in one stage")
        return start.model, ()
    return start.model, tuple(sorted({*untrained, *start.untrained}))


# -- Text ------------------------------------------------------------------------------------------


def _front_ends(config: TrainingConfig, folder: Path, notes: list[str]) -> tuple[FrontEnd | None, FrontEnd]:
    """The base's front end, if it has any, and the one to train with."""
    has_own = any((folder / name).is_file() for name in (FRONT_END_FILE, "vocab.json"))
    old = FrontEnd.from_folder(folder) if has_own or not config.tokenizer_name else None
    front_end = (
        FrontEnd.from_folder(Path(config.tokenizer_name).expanduser()) if config.tokenizer_name else old
    )
    assert front_end is not None  # noqa: S101 - the one or the other was read
    if config.espeak_voice:
        if front_end.spec["kind"] != "piper":
            raise ModelError(
                f"espeak_voice: {folder} reads characters, not phonemes; leave espeak_voice out."
            )
        front_end = FrontEnd.from_spec({**front_end.spec, "espeak_voice": config.espeak_voice})
    if config.do_lower_case:  # a part of the front end, so that every text is, wherever the model speaks
        front_end = FrontEnd.from_spec({**front_end.spec, "lower_case": True})
    if config.vocabulary_additions:
        extended = front_end.extended(config.vocabulary_additions)
        if extended == front_end:
            notes.append("vocabulary_additions: the vocabulary has every one of them already")
        front_end = extended
    return old, front_end


def _fit_vocabulary(
    config: TrainingConfig, model: VitsForTraining, old: FrontEnd | None, new: FrontEnd, notes: list[str]
) -> None:
    """Give the model an embedding for each symbol of the new front end: the old one where it had the symbol.

    Raises:
        ModelError: The model has too few embeddings, and nothing tells what they stand for.
    """
    rows, symbols = model.config.vocab_size, new.symbols
    if config.override_vocabulary_embeddings:
        size = new.vocab_size if config.tokenizer_name else max(rows, new.vocab_size)
        resize_vocabulary(model, size, keep={}, seed=config.seed)
        notes.append(f"vocabulary: fresh embeddings for all {len(symbols)} symbols")
        return
    if old is None:
        if new.vocab_size > rows:
            raise ModelError(
                f"tokenizer_name: {config.tokenizer_name} has {new.vocab_size} symbols and the base {rows} embeddings, "
                "without a tokenizer that says of which. Set override_vocabulary_embeddings to start with fresh ones."
            )
        return
    before = old.symbols
    if symbols == before:
        return
    added = [symbol for symbol in symbols if symbol not in before]
    gone = [symbol for symbol in before if symbol not in symbols]
    if all(symbols.get(symbol) == ids for symbol, ids in before.items()):  # nothing has moved
        size = max(rows, new.vocab_size)
        fresh = {token_id for symbol in added for token_id in symbols[symbol]}
        keep = {row: row for row in range(rows) if row not in fresh}
    else:
        size = new.vocab_size
        pairs = (
            pair for symbol in symbols for pair in zip(symbols[symbol], before.get(symbol, ()), strict=False)
        )
        keep = {now: then for now, then in pairs if then < rows}
    resize_vocabulary(model, size, keep=keep, seed=config.seed)
    notes.append(
        f"vocabulary: {len(symbols) - len(added)} symbols keep their embeddings"
        + (f"; new: {_listed(map(repr, added))}" if added else "")
        + (f"; no longer there: {_listed(map(repr, gone))}" if gone else "")
    )


# -- Speakers --------------------------------------------------------------------------------------


def _speakers(folder: Path, count: int) -> dict[str, int]:
    """The speakers of a model of several; who has no name is called by their number.

    Raises:
        ModelError: ``speakers.json`` is another model's.
    """
    if count <= 1:
        return {}
    path = folder / "speakers.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(ids, dict) or not all(isinstance(i, int) and 0 <= i < count for i in ids.values()):
        raise ModelError(
            f"{path} must give each speaker's name an id from 0 to {count - 1}, the model's speakers. "
            "Correct it, or take it out of the folder to call them by their numbers."
        )
    return ids | {str(i): i for i in range(count) if i not in ids.values() and str(i) not in ids}


def fit_speakers(base: Base, names: Iterable[str], config: TrainingConfig) -> dict[str, int]:
    """Make the base one of the data's speakers, and say which id each of them has.

    Speakers that the base knows (by number, if it has no names for them) keep their ids; new ones follow in
    sorted order, and the model grows. A base of one speaker stays one when the data have one too; with
    several it becomes a model of several, which all start as its voice. With ``override_speaker_embeddings``,
    or from scratch, the data's speakers replace the base's, with fresh embeddings.

    Args:
        base: Its model and its ``speakers`` are changed in place.
        names: The speakers of the training data, in any order and number; none where the data name none.
        config: The configuration.

    Returns:
        Ids by name, which are also the base's ``speakers`` from now on; empty for a model of one speaker.
    """
    model, spoken = base.model, set(names)
    replace = config.override_speaker_embeddings or config.train_from_scratch
    ids = {} if replace else dict(base.speakers)
    new = sorted(spoken - ids.keys())
    for name in new:
        ids[name] = max(ids.values(), default=-1) + 1
    before, count = model.config.num_speakers, max(ids.values(), default=-1) + 1
    base.speakers = {}
    if before <= 1 and count <= 1:
        return {}
    if before <= 1:
        add_speakers(model, count, seed=config.seed)
        start = "" if config.train_from_scratch else " that all start as the base's only voice"
        base.notes.append(
            f"speakers: the data have {count}, so it becomes a model of {count}{start}; keep one with "
            "filter_on_speaker_id"
        )
    elif replace:
        replace_speakers(model, max(count, 2) if spoken else before, seed=config.seed)
        spare = "; the second is nobody's, as a model of several has at least two" if count == 1 else ""
        base.notes.append(f"speakers: fresh embeddings for {model.config.num_speakers}{spare}")
    elif count > before:
        add_speakers(model, count, seed=config.seed)
        base.notes.append(f"speakers: {count - before} more than the base's {before}: {_listed(new)}")
    if not spoken:
        base.notes.append(
            "speakers: the data name none, so that all of it is speaker 0; name the column with speaker_id_column_name"
        )
    base.speakers = ids
    return dict(ids)
