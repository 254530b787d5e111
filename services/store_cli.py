"""``vits models`` and ``vits voices``: look into a store, and move aliases.

What reads everything, copies or deletes is in `services.store_upkeep`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from services.store_upkeep import add_upkeep, run_upkeep
from services.tables import print_json, print_table, size, time
from shared.arguments import Parser
from shared.errors import NotFoundError
from shared.manifests import Alias, Kind, Manifest
from shared.progress import byte_bar
from shared.provenance import PROVENANCE_FILE, Provenance, commercial_warning
from shared.store import default_store_url

if TYPE_CHECKING:
    from pydantic import JsonValue

    from shared.registry import Registry, Version

EPILOG = """\
a REFERENCE is one of
  joe                                the alias 'latest', or else the newest version
  joe@production                     what an alias points to
  joe/20260102T030405-89abcdef       one version

looking
  vits {kind} list
  vits {kind} show joe --json
  vits {kind} diff joe@production joe             what a promotion would change
  vits {kind} history joe production
  vits {kind} verify --all                        read every file, compare it with its manifest

moving
  vits {kind} publish ./folder joe --store s3://bucket/prefix
  vits {kind} promote joe production
  vits {kind} rollback joe production             to the version before; again: one further back
  vits {kind} copy joe@production s3://bucket/prefix --alias production

deleting; with --dry-run each says what it would do, and does nothing
  vits {kind} gc --dry-run                        superseded versions, what crashed writers left, idle runs
  vits {kind} delete joe/20260102T030405-89abcdef
  vits {kind} delete joe --purge --reason 'consent withdrawn, letter of 3 May' --dry-run

docs/store.md goes on from here.
"""


def _parser(kind: str) -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument(
        "--store",
        metavar="URL",
        default=default_store_url(),
        help="a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix "
        "(default: $VITS_STORE, or file://./store; now %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")

    parser = Parser(
        prog=f"vits {kind}",
        description=f"List and show the {kind} in a store, move their aliases, and look after both.",
        epilog=EPILOG.format(kind=kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *arguments: tuple[str, str]) -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name, parents=[common], help=text, description=text[0].upper() + text[1:] + "."
        )
        for argument, explanation in arguments:
            subparser.add_argument(argument, metavar=argument.upper(), help=explanation)
        return subparser

    reference = ("reference", "name, name@alias or name/version")
    name = ("name", "as 'list' prints it")
    command("list", f"list the {kind} with their newest versions and aliases")
    command("show", "show a version's manifest: files, licence, sources, lineage", reference)
    command(
        "diff",
        "compare two versions: files, and what has changed in their JSON",
        ("old", "name, name@alias or name/version"),
        ("new", "the same"),
    )
    command("history", "list every move of an alias", name, ("alias", "such as production"))
    command(
        "promote", "point an alias to a version", reference, ("alias", "such as production; created when new")
    )
    command(
        "rollback",
        "point an alias to the version that it pointed to before; done again, one further back",
        name,
        ("alias", "such as production"),
    )
    command(
        "publish",
        "put a local folder into the store as a new version",
        (
            "folder",
            "its files; licence and sources are read from its provenance.json, or else a voice's voice.json",
        ),
        ("name", "lower-case letters, digits, dashes, dots and underscores"),
    )
    add_upkeep(kind, command)
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
        case "diff":
            _diff(registry, kind, options.old, options.new, options.json)
        case "promote":
            _promote(registry, registry.resolve(kind, options.reference), options.alias, options.json)
        case "rollback":
            _tell_move(registry.roll_back(kind, options.name, options.alias), options.json)
        case "publish":
            _publish(registry, kind, Path(options.folder), options.name, options.json)
        case _:
            return run_upkeep(registry, kind, options)
    return 0


def _origin(registry: Registry, kind: Kind, folder: Path) -> tuple[Provenance, dict[str, JsonValue]]:
    """What a folder says of where it comes from; of a voice its model too, if that is here: a withdrawal goes by it."""
    from shared.voice.spec import VOICE_FILE, VoiceSpec

    if kind == "models" or (folder / PROVENANCE_FILE).is_file() or not (folder / VOICE_FILE).is_file():
        return Provenance.read(folder), {"folder": str(folder)}
    spec = VoiceSpec.read(folder)
    provenance = Provenance(licence=spec.licence, sources=tuple(spec.sources))
    if spec.model:
        with suppress(NotFoundError):
            model = registry.resolve("models", f"{spec.model.name}/{spec.model.version}")
            provenance = provenance.model_copy(update={"consent": model.manifest.consent})
            return provenance, {"model": spec.model.model_dump()}
    return provenance, {"folder": str(folder)}


def _publish(registry: Registry, kind: Kind, folder: Path, name: str, as_json: bool) -> None:
    provenance, lineage = _origin(registry, kind, folder)
    with byte_bar(f"Publishing {name}") as progress:
        version = registry.publish(
            kind,
            name,
            folder,
            licence=provenance.licence,
            sources=provenance.sources,
            consent=provenance.consent,
            lineage=lineage,
            progress=progress,
        )
    if as_json:
        print_json({"name": name, "version": version.id})
    else:
        print(f"published {version.reference} in {registry.store.url}")


def _list(registry: Registry, kind: Kind, as_json: bool) -> None:
    newest: list[tuple[Manifest, dict[str, str]]] = []
    for name in registry.names(kind):
        version = registry.resolve(kind, f"{name}/{registry.versions(kind, name)[-1]}")
        newest.append((version.manifest, registry.aliases(kind, name)))
    if as_json:
        print_json(
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
        print_table(
            ["name", "newest version", "aliases", "size", "created"],
            [
                [
                    manifest.name,
                    manifest.version,
                    "\n".join(f"{alias} → {version}" for alias, version in aliases.items()),
                    size(manifest.total_bytes),
                    time(manifest.created),
                ]
                for manifest, aliases in newest
            ],
        )
        for manifest, _ in newest:
            _warn_of_licence(manifest)


def _show(registry: Registry, kind: Kind, reference: str, as_json: bool) -> None:
    manifest = registry.resolve(kind, reference).manifest
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    print_table(
        ["", ""],
        [
            ["name", manifest.name],
            ["version", manifest.version],
            ["created", time(manifest.created)],
            ["size", size(manifest.total_bytes)],
            ["licence", manifest.licence],
            ["sources", "\n".join(manifest.sources) or "not given"],
            ["consent", manifest.consent or "not given"],
            *([key, json.dumps(value, ensure_ascii=False)] for key, value in manifest.lineage.items()),
        ],
    )
    print_table(
        ["file", "size", "sha256"],
        [[entry.path, size(entry.bytes), f"{entry.sha256[:16]}…"] for entry in manifest.files],
    )
    _warn_of_licence(manifest)


def _warn_of_licence(manifest: Manifest) -> None:
    if warning := commercial_warning(manifest.name, manifest.licence):
        print(f"Warning: {warning}")


def _history(registry: Registry, kind: Kind, name: str, alias: str, as_json: bool) -> None:
    moves = registry.history(kind, name, alias)
    if as_json:
        print_json([move.model_dump(mode="json") for move in moves])
        return
    print_table(
        ["move", "version", "when", "by"],
        [[str(move.sequence), move.version, time(move.created), move.writer] for move in reversed(moves)],
    )


def _promote(registry: Registry, version: Version, alias: str, as_json: bool) -> None:
    """Point an alias to a version. Where it is there already, its history gets no second move to the same."""
    kind, name = version.kind, version.name
    if registry.aliases(kind, name).get(alias) == version.id:
        _tell_move(registry.history(kind, name, alias)[-1], as_json, word="already")
    else:
        _tell_move(registry.move_alias(kind, name, alias, version.id), as_json)


def _tell_move(move: Alias, as_json: bool, *, word: str = "now") -> None:
    if as_json:
        print_json(move.model_dump(mode="json"))
    else:
        print(f"{move.name}@{move.alias} is {word} {move.version} (move {move.sequence})")


#: Larger JSON files are compared by their digest alone.
LARGEST_JSON_BYTES = 1 << 20


def _diff(registry: Registry, kind: Kind, old_reference: str, new_reference: str, as_json: bool) -> None:
    old, new = registry.resolve(kind, old_reference), registry.resolve(kind, new_reference)
    rows = [
        ("manifest", key, _shown(before), _shown(after))
        for key, before, after in _changes(_described(old.manifest), _described(new.manifest))
    ]
    before, after = ({entry.path: entry for entry in each.manifest.files} for each in (old, new))
    for path in sorted(before | after):
        was, is_ = before.get(path), after.get(path)
        if was == is_:
            continue
        rows.append(
            (path, "", size(was.bytes) if was else "not there", size(is_.bytes) if is_ else "not there")
        )
        if was and is_ and path.endswith(".json") and max(was.bytes, is_.bytes) <= LARGEST_JSON_BYTES:
            contents = (json.loads(registry.store.read(f"{each.prefix}/{path}")) for each in (old, new))
            rows += [(path, key, _shown(a), _shown(b)) for key, a, b in _changes(*contents)]
    if as_json:
        print_json(
            {
                "old": old.reference,
                "new": new.reference,
                "changes": [dict(zip(("where", "what", "old", "new"), row, strict=True)) for row in rows],
            }
        )
    elif rows:
        print_table(["where", "what", old.reference, new.reference], [list(row) for row in rows])
    else:
        print(f"{old.reference} and {new.reference} hold the same")


def _described(manifest: Manifest) -> dict[str, object]:
    return {
        "licence": manifest.licence,
        "sources": list(manifest.sources),
        "consent": manifest.consent,
        "lineage": manifest.lineage,
    }


def _changes(old: object, new: object, at: str = "") -> list[tuple[str, object, object]]:
    """Where two JSON values differ: the path to each place, and what was and is there."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in sorted(old.keys() | new.keys())
            for change in _changes(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if old == new else [(at, old, new)]


def _shown(value: object) -> str:
    """A JSON value on one line, cut where nobody reads on."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
