"""``vits export``: turn a trained model into a voice that runs fast."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError
from shared.manifests import check_name
from shared.model_source import ModelSource, find_model
from shared.provenance import UNKNOWN_LICENCE
from shared.registry import Registry, Version
from shared.store import Store, default_store_url

EPILOG = """\
what it does:
  1. writes the model as three ONNX graphs: encoder, flow, decoder
  2. compares each of them, and the whole, with PyTorch on the same noise; stops where they differ
  3. publishes the voice, and points its alias 'latest' (and any --alias) to it

examples:
  vits export output/my-voice                            a folder that 'vits train' wrote
  vits export my-voice@latest                            a model in the store
  vits export my-voice --alias production                and let servers of @production take it up
  vits export output/my-voice --output voices/my-voice   into a folder, not into a store
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="vits export",
        description="Turn a trained model into a voice that runs fast, and prove that it says the same.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model folder, or a model in the store: name, name@alias, name/version",
    )
    parser.add_argument("--name", metavar="VOICE", help="the voice's name (default: the model's)")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="where models are found and voices published: a folder, s3://, gs://, az:// "
        "(default: $VITS_STORE, or file://./store)",
    )
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="ALIAS",
        help="another alias, besides 'latest', to point to the new voice; may be given several times",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the voice into a folder; without --store it is then not published",
    )
    parser.add_argument(
        "--language",
        metavar="TAG",
        help="what the voice speaks, such as 'es' (default: what its text front end says)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``vits export``."""
    arguments = parser().parse_args(argv)
    publish = arguments.store is not None or arguments.output is None
    for alias in arguments.alias:
        check_name(alias, "alias")
    if arguments.name:
        check_name(arguments.name, "voice's name")
    source = find_model(arguments.model, arguments.store or default_store_url())
    name = check_name(arguments.name or source.name, "voice's name (give another with --name)")
    if source.provenance.licence == UNKNOWN_LICENCE:
        print("Warning: nobody said what licence the model is under, so the voice says 'unknown'", flush=True)

    # Built aside, so that what stops half-way leaves nothing that looks like a voice.
    with tempfile.TemporaryDirectory(prefix="vits-export-") as temporary:
        folder = Path(temporary)
        write_voice(source, folder, arguments.language)
        if arguments.output:
            copy_voice(folder, arguments.output)
            print(f"Wrote the voice into {arguments.output}")
        if publish:
            registry = Registry(Store.open(arguments.store or default_store_url()))
            version = publish_voice(registry, name, folder, source)
            print(f"Published {version.reference} in {registry.store.url}")
            for alias in dict.fromkeys(["latest", *arguments.alias]):
                registry.move_alias("voices", name, alias, version.id)
                print(f"{name}@{alias} is now {version.id}")
    return 0


def write_voice(source: ModelSource, folder: Path, language: str | None) -> None:
    """Export a model into a folder, a line for each step."""
    from services.export.export import export_voice  # here, so that --help does not wait for torch
    from shared.voice.spec import ModelReference

    version = source.version
    export_voice(
        source.folder,
        folder,
        provenance=source.provenance,
        model=ModelReference(name=version.name, version=version.id) if version else None,
        language=language,
        progress=lambda line: print(line, flush=True),
    )


def copy_voice(folder: Path, output: Path) -> None:
    """Copy a finished voice to where the user wants it.

    Raises:
        UserError: It cannot be written there.
    """
    try:
        shutil.copytree(folder, output, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise UserError(f"The voice cannot be written into {output}: {error}") from error


def publish_voice(registry: Registry, name: str, folder: Path, source: ModelSource) -> Version:
    """Publish a voice folder with its origin."""
    version = source.version
    model = {"name": version.name, "version": version.id} if version else {"folder": str(source.folder)}
    return registry.publish(
        "voices",
        name,
        folder,
        licence=source.provenance.licence,
        sources=list(source.provenance.sources),
        consent=source.provenance.consent,
        lineage={"model": dict(model)},
    )
