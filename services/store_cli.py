"""``vits models`` and ``vits voices``: look into a store, and move aliases."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shared.manifests import Kind, Manifest
from shared.store import default_store_url

if TYPE_CHECKING:
    from shared.registry import Registry

EPILOG = """\
a REFERENCE is one of
  joe                                the alias 'latest', or else the newest version
  joe@production                     what an alias points to
  joe/20260102T030405-89abcdef       one version

examples
  vits {kind} list
  vits {kind} show joe --json
  vits {kind} promote joe production
  vits {kind} promote joe/20260102T030405-89abcdef production     (roll back)
  vits {kind} publish ./folder joe --store s3://bucket/prefix
  vits {kind} history joe production --store s3://bucket/prefix
"""


#: Characters to a line where nobody looks at a screen: more than any table has.
UNBOUNDED_WIDTH = 10_000


def _parser(kind: str) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--store",
        metavar="URL",
        default=default_store_url(),
        help="a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix "
        "(default: $VITS_STORE, or file://./store; now %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")

    parser = argparse.ArgumentParser(
        prog=f"vits {kind}",
        description=f"List and show the {kind} in a store, and move the aliases by which they are used.",
        epilog=EPILOG.format(kind=kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *arguments: tuple[str, str]) -> None:
        subparser = commands.add_parser(
            name, parents=[common], help=text, description=text.capitalize() + "."
        )
        for argument, explanation in arguments:
            subparser.add_argument(argument, metavar=argument.upper(), help=explanation)

    reference = ("reference", "name, name@alias or name/version")
    command("list", f"list the {kind} with their newest versions and aliases")
    command("show", "show a version's manifest: files, licence, sources, lineage", reference)
    command(
        "history",
        "list every move of an alias",
        ("name", "as 'list' prints it"),
        ("alias", "such as production"),
    )
    command(
        "promote", "point an alias to a version", reference, ("alias", "such as production; created when new")
    )
    command(
        "publish",
        "put a local folder into the store as a new version",
        ("folder", "its files; licence and sources are read from its provenance.json"),
        ("name", "lower-case letters, digits, dashes, dots and underscores"),
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ``vits models …`` or ``vits voices …``.

    Args:
        argv: ``models`` or ``voices``, then the arguments.

    Raises:
        VitsError: What was asked for cannot be done; the message says why.
    """
    kind = cast("Kind", argv[0])
    options = _parser(kind).parse_args(argv[1:])

    from shared.registry import Registry
    from shared.store import Store

    registry = Registry(Store.open(options.store))
    match options.command:
        case "list":
            _list(registry, kind, options.json)
        case "show":
            _show(registry, kind, options.reference, options.json)
        case "history":
            _history(registry, kind, options.name, options.alias, options.json)
        case "promote":
            _promote(registry, kind, options.reference, options.alias, options.json)
        case "publish":
            _publish(registry, kind, Path(options.folder), options.name, options.json)
    return 0


def _publish(registry: Registry, kind: Kind, folder: Path, name: str, as_json: bool) -> None:
    from shared.provenance import Provenance

    provenance = Provenance.read(folder)
    version = registry.publish(
        kind,
        name,
        folder,
        licence=provenance.licence,
        sources=provenance.sources,
        consent=provenance.consent,
        lineage={"folder": str(folder)},
    )
    if as_json:
        _print_json({"name": name, "version": version.id})
    else:
        print(f"published {version.reference} in {registry.store.url}")


def _list(registry: Registry, kind: Kind, as_json: bool) -> None:
    newest: list[tuple[Manifest, dict[str, str]]] = []
    for name in registry.names(kind):
        version = registry.resolve(kind, f"{name}/{registry.versions(kind, name)[-1]}")
        newest.append((version.manifest, registry.aliases(kind, name)))
    if as_json:
        _print_json(
            [
                {
                    "name": manifest.name,
                    "newest": manifest.version,
                    "aliases": aliases,
                    "bytes": manifest.total_bytes,
                    "created": manifest.created.isoformat(),
                }
                for manifest, aliases in newest
            ]
        )
    elif not newest:
        print(registry.store.lack(kind))
    else:
        _print_table(
            ["name", "newest version", "aliases", "size", "created"],
            [
                [
                    manifest.name,
                    manifest.version,
                    "\n".join(f"{alias} → {version}" for alias, version in aliases.items()),
                    _size(manifest.total_bytes),
                    _time(manifest.created),
                ]
                for manifest, aliases in newest
            ],
        )


def _show(registry: Registry, kind: Kind, reference: str, as_json: bool) -> None:
    manifest = registry.resolve(kind, reference).manifest
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    _print_table(
        ["", ""],
        [
            ["name", manifest.name],
            ["version", manifest.version],
            ["created", _time(manifest.created)],
            ["size", _size(manifest.total_bytes)],
            ["licence", manifest.licence],
            ["sources", "\n".join(manifest.sources) or "not given"],
            ["consent", manifest.consent or "not given"],
            *([key, json.dumps(value, ensure_ascii=False)] for key, value in manifest.lineage.items()),
        ],
    )
    _print_table(
        ["file", "size", "sha256"],
        [[entry.path, _size(entry.bytes), f"{entry.sha256[:16]}…"] for entry in manifest.files],
    )


def _history(registry: Registry, kind: Kind, name: str, alias: str, as_json: bool) -> None:
    moves = registry.history(kind, name, alias)
    if as_json:
        _print_json([move.model_dump(mode="json") for move in moves])
        return
    _print_table(
        ["move", "version", "when", "by"],
        [[str(move.sequence), move.version, _time(move.created), move.writer] for move in reversed(moves)],
    )


def _promote(registry: Registry, kind: Kind, reference: str, alias: str, as_json: bool) -> None:
    version = registry.resolve(kind, reference)
    move = registry.move_alias(kind, version.name, alias, version.id)
    if as_json:
        _print_json(move.model_dump(mode="json"))
    else:
        print(f"{version.name}@{alias} is now {version.id} (move {move.sequence})")


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _size(size: int) -> str:
    """A number of bytes for people."""
    from rich.filesize import decimal

    return decimal(size)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Through a pipe there is no width to fit, and names in a store are not markup.
    width = None if sys.stdout.isatty() else UNBOUNDED_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    table = Table(*header, box=SIMPLE_HEAD, show_header=any(header))
    for row in rows:
        table.add_row(*row)
    console.print(table)
