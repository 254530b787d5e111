"""``vits data push``: a dataset to the Hugging Face hub, or into a folder to be uploaded elsewhere."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from services.training.data.card import DatasetCard, read_card
from services.training.data.commands.clean import add_reading, read
from services.training.data.hub import load_library, looks_like_id
from services.training.data.listening import Listeners
from services.training.data.reading import Survey
from services.training.data.recordings import Recording
from services.training.data.writing import new_folder
from shared.audio import Audio, encode_flac
from shared.errors import ConfigError, HubUnreachableError, UserError
from shared.provenance import UNKNOWN_LICENCE
from shared.wording import counted

HELP = "put a dataset on the Hugging Face hub"

DESCRIPTION = """\
Put a dataset on the Hugging Face hub, with its splits, its sound as FLAC, and a card that says whose voice it is, under
which licence, and how the speaker agreed. It is private unless you say --public: a recorded voice is personal data.

The token is read from the environment (HUB_TOKEN, or HF_TOKEN), or is the one of 'hf auth login'; never from the
command line.
"""

EPILOG = """\
examples:
  HUB_TOKEN=... vits data push data/ana my-name/ana
  vits data push data/ana my-name/ana --save-to ana-for-the-hub       # without a network; then, where there is one:
  hf upload --repo-type dataset my-name/ana ana-for-the-hub
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("source", metavar="DATASET", help="a folder, or a table file")
    parser.add_argument("name", metavar="NAME", help="its name on the hub, such as my-name/ana")
    add_reading(parser)
    parser.add_argument("--public", action="store_true", help="let everybody see it (default: private)")
    parser.add_argument(
        "--save-to", type=Path, metavar="DIR", help="write what would be sent into this new folder instead"
    )


def run(options: argparse.Namespace, listeners: Listeners) -> int:
    """Run it.

    Raises:
        UserError: The dataset or the name cannot be used, or the hub refuses it.
        HubUnreachableError: The hub does not answer; says how to go on without.
    """
    if not looks_like_id(options.name) or "/" not in options.name:
        raise UserError(f"{options.name!r} is no name for the hub: give owner/name, such as my-name/ana")
    found = read(options)
    found.raise_problems()
    folder = Path(options.source).expanduser()
    card = (read_card(folder) if folder.is_dir() else None) or DatasetCard(folder.stem, UNKNOWN_LICENCE)
    if options.public and (card.licence == UNKNOWN_LICENCE or not card.consent):
        raise ConfigError(
            "A public dataset has to say what may be done with it:",
            [
                f"dataset.json has no {what}: 'vits data clean {options.source} --{what} … --output DIR' writes it"
                for what, known in (
                    ("licence", card.licence != UNKNOWN_LICENCE),
                    ("consent", bool(card.consent)),
                )
                if not known
            ],
        )
    if options.save_to:
        with new_folder(options.save_to, "--save-to") as made:
            write_folder(found, card, options.name, made)
        print(f"{options.save_to}: what the hub is to hold. Where there is a network:")
        print(f"  hf upload --repo-type dataset {options.name} {shlex.quote(str(options.save_to))}")
        return 0
    with tempfile.TemporaryDirectory() as made:
        write_folder(found, card, options.name, Path(made))
        _upload(Path(made), options.name, private=not options.public)
    kind = "public" if options.public else "private"
    print(f"{options.name}: {counted(len(found.recordings), 'recording')}, {kind}")
    print(f"next: vits train --dataset_name {options.name} …")
    return 0


def write_folder(found: Survey, card: DatasetCard, name: str, folder: Path) -> None:
    """Write what the hub holds: a parquet file a split, with the sound in it, and the card."""
    (folder / "data").mkdir()
    splits = _splits(found)
    for split, rows in splits.items():
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    text = hub_card(card, name, {split: len(rows) for split, rows in splits.items()})
    (folder / "README.md").write_text(text, encoding="utf-8")


def _splits(found: Survey) -> dict[str, Any]:
    """The recordings as the ``datasets`` library has them, by split: FLAC files in rows."""
    datasets = load_library()
    string = datasets.Value("string")
    # As files that nobody encodes: the library's own way to a sound column asks for torchcodec.
    sound = {"bytes": datasets.Value("binary"), "path": string}
    features = {"audio": sound, "text": string, "id": string}
    with_speakers = any(recording.speaker for recording in found.recordings)
    if with_speakers:
        features["speaker_id"] = string

    def row(recording: Recording) -> dict[str, Any]:
        source = recording.source()
        if isinstance(source, Path) and source.suffix.lower() == ".flac":
            content = source.read_bytes()
        else:
            audio: Audio = recording.audio()
            content = encode_flac(audio.samples, audio.sampling_rate)
        made: dict[str, Any] = {
            "audio": {"bytes": content, "path": f"{Path(recording.id).name}.flac"},
            "text": recording.text, "id": recording.id,
        }  # fmt: skip
        return made | ({"speaker_id": recording.speaker or ""} if with_speakers else {})

    made = {}
    for name in dict.fromkeys(found.splits):
        rows = [row(r) for r, split in zip(found.recordings, found.splits, strict=True) if split == name]
        dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        made[name] = dataset.cast_column("audio", datasets.Audio())
    return made


def hub_card(card: DatasetCard, name: str, splits: dict[str, int]) -> str:
    """The README.md of a dataset on the hub."""
    from huggingface_hub import DatasetCardData

    one_licence = card.licence if card.licence.replace("-", "").replace(".", "").isalnum() else "other"
    known = card.licence != UNKNOWN_LICENCE
    data = DatasetCardData(
        language=card.language.partition("-")[0] or None,
        license=one_licence.lower() if known and card.licence != "private" else "other",
        task_categories=["text-to-speech"],
        pretty_name=card.name,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "Recordings of speech with their transcripts, for text-to-speech: "
        + ", ".join(f"{count:,} {split}" for split, count in splits.items())
        + ".",
        f"Licence: {card.licence if known else 'not known: ask the owner before you use it'}.",
        *([card.attribution] if card.attribution else []),
        *(["Sources:\n\n" + "\n".join(f"- {source}" for source in card.sources)] if card.sources else []),
        f"Consent of the speaker: {card.consent or 'not recorded here'}.",
        "What is made from these recordings, a voice above all, carries this licence, these sources and this consent.",
    ]
    return "\n\n".join(parts) + "\n"


def _upload(folder: Path, name: str, *, private: bool) -> None:
    """Send a folder, in one commit.

    Raises:
        HubUnreachableError: The hub does not answer.
        UserError: It answers that this may not be, or what is to be private would be public there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=os.environ.get("HUB_TOKEN") or os.environ.get("HF_TOKEN") or None)
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        if private and not api.repo_info(name, repo_type="dataset").private:  # it was there already
            raise UserError(
                f"{name} is there already, and everybody sees it: nothing was sent. Say --public if that is "
                "meant, make it private on the hub, or give another name"
            )
        api.upload_folder(
            repo_id=name, repo_type="dataset", folder_path=folder, commit_message="vits data push"
        )
    except HfHubHTTPError as error:
        raise UserError(
            f"The hub did not take {name}: {error}\nIs the token (HUB_TOKEN, HF_TOKEN or 'hf auth login') one that may "
            "write there? '--save-to DIR' keeps what would be sent."
        ) from error
    except UserError:
        raise
    except Exception as error:  # of whichever HTTP client the hub library is built on
        raise HubUnreachableError(
            f"The Hugging Face hub could not be reached ({error}), and nothing was sent.\n"
            "Two ways to go on:\n"
            "  - start it again where there is a network, with HUB_TOKEN in the environment;\n"
            "  - '--save-to DIR' writes what would be sent; then, elsewhere, 'hf upload --repo-type dataset "
            f"{name} DIR'."
        ) from error
