"""A model of one voice as a model of several, or more speakers for a model that has some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from shared.errors import ModelError
from shared.folders import whole_folder
from shared.modeling import load_model, save_model
from shared.modeling.loading import DISCRIMINATOR_FILE
from shared.modeling.speakers import EMBEDDING_SIZE, add_speakers

SPEAKERS_FILE = "speakers.json"


def convert(
    source: Path,
    output: Path,
    speakers: Sequence[str],
    *,
    embedding_size: int = EMBEDDING_SIZE,
    seed: int = 0,
) -> dict[str, int]:
    """Write a copy of a model that knows more speakers; every one that it had sounds as before.

    Args:
        source: A model folder.
        output: The folder to write; a model folder that is there is replaced.
        speakers: For a model of one voice, all of the new model's. For one of several, those to add.
        embedding_size: Channels of an embedding, where the model has none yet.
        seed: Of what is drawn for the new ones.

    Returns:
        Every speaker's id.

    Raises:
        ModelError: The model or the names cannot be used; nothing is written.
    """
    with whole_folder(output, sources=[source]) as folder:
        model = load_model(source)
        ids = _all_ids(speakers, known=_known(source, model.config.num_speakers), where=source)
        add_speakers(model, len(ids), embedding_size=embedding_size, seed=seed)
        save_model(model, folder, companions=source)
        (folder / SPEAKERS_FILE).write_text(
            json.dumps(ids, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if (source / DISCRIMINATOR_FILE).is_file():
            shutil.copyfile(source / DISCRIMINATOR_FILE, folder / DISCRIMINATOR_FILE)
    return ids


def _known(source: Path, count: int) -> dict[str, int]:
    """The speakers that a model has; those without a name are called by their number.

    Raises:
        ModelError: ``speakers.json`` is not of this model.
    """
    if count <= 1:
        return {}
    path = source / SPEAKERS_FILE
    if not path.is_file():
        return {str(number): number for number in range(count)}
    try:
        ids = {str(name): int(number) for name, number in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f'{path} is not of the form {{"NAME": ID, …}}: {error}') from error
    if any(not 0 <= number < count for number in ids.values()):
        raise ModelError(f"{path} has ids beyond the model's {count} speakers. Give the model's own file.")
    taken = set(ids.values())
    return ids | {str(number): number for number in range(count) if number not in taken}


def _all_ids(speakers: Sequence[str], *, known: dict[str, int], where: Path) -> dict[str, int]:
    """Ids of the known and the new.

    Raises:
        ModelError: A name is there twice, or there are too few.
    """
    names = [name.strip() for name in speakers]
    twice = sorted({name for name in names if names.count(name) > 1 or name in known or not name})
    if twice:
        raise ModelError(
            f"--speakers: {', '.join(map(repr, twice))} cannot be added: every speaker needs a name of their own"
            + (f", and {where} has {', '.join(known)} already." if known else ".")
        )
    ids = known | {name: len(known) + number for number, name in enumerate(names)}
    if not names and known:
        raise ModelError(f"--speakers: name those to add to {', '.join(known)}, which {where} has already.")
    if len(ids) < 2:
        raise ModelError(
            f"--speakers {','.join(names)}: {where} speaks with one voice; name all speakers that the new model is "
            "to have, two at least, the one it already speaks as among them."
        )
    return ids
