"""``vits export``: turn a trained model into a voice that runs fast."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from services.export.formats import FORMATS
from services.export.report import REPORT_FILE, REPORT_PAGE
from shared.arguments import Parser
from shared.errors import CorruptObjectError, NotFoundError, QualityError, UserError
from shared.folders import check_writable, writing
from shared.languages import language_code
from shared.manifests import check_name
from shared.model_source import ModelSource, find_model
from shared.provenance import UNKNOWN_LICENCE, commercial_warning
from shared.registry import Registry, Version
from shared.store import Store, default_store_url, digest_file

if TYPE_CHECKING:
    from shared.voice import VoiceSpec

OUTPUT_REMEDY = "give another --output"
TEMPORARY_REMEDY = "make room there, or set TMPDIR to another folder"

EPILOG = """\
what it does:
  1. writes the model as ONNX graphs: encoder, flow, decoder
  2. compares each of them, and the whole, with PyTorch on the same noise; stops where they differ
  3. calibrates int8 decoders on sentences of the voice's language
  4. lets judges hear what is not exact (bf16, int8) beside fp32, on over 2,000 words, and takes out what they hear
     to be worse or what is not faster; the voice's report.html shows it, with players
  5. publishes the voice, and points its alias 'latest' (and any --alias) to it
Steps 3 and 4 take minutes to an hour, go on where they were interrupted, and need the extra 'judges'.

examples:
  vits export output/my-voice                            a folder that 'vits train' wrote
  vits export my-voice@latest                            a model in the store
  vits export my-voice@latest --variants fp32            the exact voice alone, in a minute
  vits export my-voice --alias production                and let servers of @production take it up
  vits export my-voice@latest --if-new                   unless that was done before, for a script that is run again
  vits export output/my-voice --output voices/my-voice   into a folder, not into a store
  vits export my-voice --format sherpa-onnx --output ana for another program: one graph in its own format

formats:
""" + "\n".join(f"  {name:<16} {what}" for name, what in FORMATS.items())


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(
        prog="vits export",
        description="Turn a trained model into a voice that runs fast, and prove that it says the same.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a model folder, or a model in the store: name, name@alias, name/version",
    )
    add("--model", dest="model_option", metavar="MODEL", help="the same, by name")
    add("--name", "--voice", metavar="VOICE", help="the voice's name (default: the model's)")
    add(
        "--store",
        metavar="URL",
        help="where models are found and voices published: a folder, s3://, gs://, az:// "
        "(default: $VITS_STORE, or file://./store)",
    )
    add(
        "--alias",
        action="append",
        default=[],
        metavar="ALIAS",
        help="another alias, besides 'latest', to point to the new voice; may be given several times",
    )
    add(
        "--if-new",
        action="store_true",
        help="do nothing if the store has a voice of this name that was made of this very version of the model with "
        "these settings; aliases that have pointed to it stay where they are now",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the voice into a folder; without --store it is then not published",
    )
    add(
        "--language",
        type=language_code,
        metavar="TAG",
        help="what the voice speaks, such as 'es' (default: what its text front end says)",
    )
    add(
        "--variants",
        type=lambda text: tuple(name.strip() for name in text.split(",") if name.strip()),
        metavar="LIST",
        help="what to make, with commas between: fp32 (always made), fp32-openvino, bf16, int8, int8-bf16, "
        "int8-onnxruntime, fp16 "
        "(default: all but fp16 that this machine runs; what it does not run is refused without --no-gate). Where "
        "one does not pass, the voice is published without it, and the exit code is 3",
    )
    add(
        "--no-gate",
        action="store_true",
        help="do not judge; what is not exact is ungated, and made even where this machine does not run it",
    )
    add(
        "--sentences",
        type=Path,
        metavar="FILE",
        help="text to calibrate and to judge with, one sentence a line, over 2,000 words "
        "(default: our own lists, for Spanish and English)",
    )
    add(
        "--recogniser",
        type=Path,
        metavar="DIR",
        help="a local faster-whisper model that tells how well the voice is understood (default: Whisper base)",
    )
    add("--format", choices=FORMATS, help="write the model for another program, into --output; see below")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``vits export``."""
    arguments = parser().parse_args(argv)
    for alias in arguments.alias:
        check_name(alias, "alias")
    if arguments.name:
        check_name(arguments.name, "voice's name")
    reference = arguments.model_option or arguments.model
    if not reference or (arguments.model and arguments.model_option):
        raise UserError("Name one model: a folder, or a model in the store such as my-voice@latest")
    if arguments.if_new and (arguments.output or arguments.format):
        raise UserError("--if-new asks the store what it has: leave out --output and --format, or --if-new")
    store = arguments.store or default_store_url()
    source = find_model(reference, store)
    if arguments.if_new and source.version is None:
        raise UserError(
            f"--if-new goes by the model's version, and the folder {reference} has none: leave it out"
        )
    if source.provenance.licence == UNKNOWN_LICENCE:
        print("Warning: nobody said what licence the model is under, so the voice says 'unknown'", flush=True)
    if warning := commercial_warning(f"the model {source.name}", source.provenance.licence):
        print(f"Warning: {warning}", flush=True)
    if arguments.format:
        return write_other_format(source, arguments)
    name = check_name(arguments.name or source.name, "voice's name (give another with --name)")
    lineage = lineage_of(source, arguments)
    aliases = list(dict.fromkeys(["latest", *arguments.alias]))
    publishes = arguments.store is not None or arguments.output is None
    registry = Registry(Store.open(store)) if publishes else None
    if registry and arguments.if_new and made_before(registry, name, lineage, aliases):
        return 0
    # Now, and not after minutes of work.
    if registry:
        registry.check_writable("voices", name)
    if arguments.output:
        check_writable(arguments.output, OUTPUT_REMEDY)

    # Built aside, so that what stops half-way leaves nothing that looks like a voice.
    with writing(Path(os.environ.get("TMPDIR") or "/tmp"), TEMPORARY_REMEDY):  # noqa: S108
        aside = tempfile.TemporaryDirectory(prefix="vits-export-")
    with aside as temporary:
        folder = Path(temporary) / "voice"  # not the temporary folder itself, which only its owner may read
        with writing(folder, TEMPORARY_REMEDY):
            folder.mkdir()
            spec = write_voice(source, folder, arguments)
        page = next(name for name in (REPORT_PAGE, REPORT_FILE) if (folder / name).is_file())
        if arguments.output:
            copy_voice(folder, arguments.output)
            print(f"Wrote the voice into {arguments.output}; its figures are in {arguments.output / page}")
        if registry:
            version = publish_voice(registry, name, folder, source, lineage)
            print(f"Published {version.reference} in {registry.store.url}")
            print(f"Its figures are in {where_to_read(registry.store, version, page)}")
            move_aliases(registry, version, aliases)
    if refused := [name for name in arguments.variants or () if name not in spec.variants]:
        raise QualityError(
            f"Of what --variants asked for, {', '.join(refused)} did not pass; the lines above say what failed and by "
            f"how much. The voice has {', '.join(spec.variants)}"
        )
    return 0


def lineage_of(source: ModelSource, arguments: argparse.Namespace) -> dict[str, JsonValue]:
    """What a voice is made of: its model, and what was asked for that makes another voice of it.

    Raises:
        UserError: A file that was named cannot be read.
    """
    version = source.version
    try:
        sentences = arguments.sentences and digest_file(arguments.sentences).sha256
    except OSError as error:
        raise UserError(f"--sentences {arguments.sentences} cannot be read: {error.strerror}") from error
    settings: dict[str, JsonValue] = {
        "variants": sorted(set(arguments.variants)) if arguments.variants else None,
        "gate": False if arguments.no_gate else None,
        "language": arguments.language,
        "sentences": sentences,
        "recogniser": str(arguments.recogniser) if arguments.recogniser else None,
    }
    return {
        "model": {"name": version.name, "version": version.id} if version else {"folder": str(source.folder)},
        "settings": {key: value for key, value in settings.items() if value is not None},
    }


def made_before(registry: Registry, name: str, lineage: dict[str, JsonValue], aliases: Sequence[str]) -> bool:
    """Whether the store has this very voice, which is said. Aliases that have never pointed to it are moved to it.

    One that has pointed to it and does not now was moved on or rolled back, which is not to be undone; one that never
    has was not asked for then, or the export broke off before it was moved.
    """
    for number in reversed(registry.versions("voices", name)):
        try:
            version = registry.resolve("voices", f"{name}/{number}")
        except (CorruptObjectError, NotFoundError) as error:
            print(error)  # damaged, or deleted meanwhile: not this very voice
            continue
        if version.manifest.lineage == lineage:
            print(f"{registry.store.url} has {version.reference}, made of the same with the same settings")
            move_aliases(registry, version, [a for a in aliases if not has_pointed(registry, a, version)])
            return True
    return False


def has_pointed(registry: Registry, alias: str, version: Version) -> bool:
    """Whether an alias points to a version of its name, or has done so."""
    try:
        return version.id in {move.version for move in registry.history(version.kind, version.name, alias)}
    except NotFoundError:
        return False


def move_aliases(registry: Registry, version: Version, aliases: Sequence[str]) -> None:
    """Point aliases of a voice to a version of it, a line for each."""
    for alias in aliases:
        registry.move_alias("voices", version.name, alias, version.id)
        print(f"{version.name}@{alias} is now {version.id}")


def where_to_read(store: Store, version: Version, file: str) -> str:
    """Where a voice's file is, for people; of a bucket, how to come by it too."""
    path = f"{version.prefix}/{file}"
    if store.root:
        return str(store.root / path)
    return (
        f"{store.address(path)}; 'vits voices copy {version.reference} ./copy --store {store.url}' puts it into "
        f"./copy/{path}"
    )


def write_voice(source: ModelSource, folder: Path, arguments: argparse.Namespace) -> VoiceSpec:
    """Build a model's voice in a folder, a line for each step; what its ``voice.json`` says."""
    from services.export.build import Wishes, build_voice  # here, so that --help does not wait for torch
    from services.export.progress import Terminal

    wishes = Wishes(
        variants=arguments.variants,
        judge=not arguments.no_gate,
        language=arguments.language,
        sentences=arguments.sentences,
        recogniser=arguments.recogniser,
    )
    spec = build_voice(source, folder, wishes, Terminal())
    listed = (f"{name} ({variant.gate})" for name, variant in spec.variants.items())
    print(f"The voice has {', '.join(listed)}")
    return spec


def write_other_format(source: ModelSource, arguments: argparse.Namespace) -> int:
    """Write a model for another program.

    Raises:
        UserError: Nobody said where, or it cannot be written there.
    """
    from services.export.formats.write import write_format

    if arguments.output is None:
        raise UserError(f"--format {arguments.format} writes into a folder: name it with --output DIR")
    check_writable(arguments.output, OUTPUT_REMEDY)
    written = write_format(
        arguments.format, source.folder, arguments.output, progress=lambda line: print(line, flush=True)
    )
    for path in written:
        print(f"Wrote {path}")
    return 0


def copy_voice(folder: Path, output: Path) -> None:
    """Copy a finished voice to where the user wants it.

    Raises:
        UserError: It cannot be written there.
    """
    try:
        shutil.copytree(folder, output, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise UserError(f"The voice cannot be written into {output}: {error}") from error


def publish_voice(
    registry: Registry, name: str, folder: Path, source: ModelSource, lineage: dict[str, JsonValue]
) -> Version:
    """Publish a voice folder with its origin."""
    return registry.publish(
        "voices",
        name,
        folder,
        licence=source.provenance.licence,
        sources=list(source.provenance.sources),
        consent=source.provenance.consent,
        lineage=lineage,
    )
