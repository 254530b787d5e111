"""The commands of ``vits models`` and ``vits voices`` that read everything, copy, or delete."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TYPE_CHECKING

from services.tables import print_json, print_table, size, time
from shared.errors import CorruptObjectError, UserError
from shared.manifests import Kind
from shared.progress import byte_bar

if TYPE_CHECKING:
    from shared.collection import Garbage
    from shared.registry import Registry, Version
    from shared.withdrawal import Plan

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """``36h``, ``30d``, ``2w``.

    Raises:
        argparse.ArgumentTypeError: It is none of these.
    """
    match = re.fullmatch(r"([0-9]+)([hdw])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: write 36h, 30d or 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def count(text: str) -> int:
    """A number from 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def add_upkeep(kind: str, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to a parser, by its function that adds one."""
    a_reference = "name, name@alias or name/version"
    dry_run = "say what would be deleted, and delete nothing"

    verify = command("verify", "read every file of versions and compare it with its manifest")
    verify.add_argument("references", nargs="*", metavar="REFERENCE", help=a_reference)
    verify.add_argument("--all", action="store_true", help=f"all versions of all {kind}")

    copy = command("copy", "copy a version to another store, with its id, licence and lineage")
    copy.add_argument("reference", metavar="REFERENCE", help=a_reference)
    copy.add_argument(
        "to", metavar="URL", help="the other store; its credentials come from the same environment"
    )
    copy.add_argument("--alias", action="append", default=[], help="promote it there; may be repeated")
    copy.add_argument(
        "--with-lineage",
        action="store_true",
        help="copy the models that it was made from too, as far as they are here",
    )

    gc = command(
        "gc",
        "delete what nobody can want any more: superseded versions, what crashed writers left"
        + (", and the state of idle runs" if kind == "models" else ""),
    )
    gc.add_argument("--dry-run", action="store_true", help=dry_run)
    gc.add_argument(
        "--keep", type=count, default=3, metavar="N", help="newest versions of a name to keep (default 3)"
    )
    gc.add_argument(
        "--history",
        type=count,
        default=5,
        metavar="N",
        help="last moves of an alias that keep their versions (default 5)",
    )
    gc.add_argument(
        "--older-than", type=duration, default=timedelta(days=1), metavar="AGE",
        help="only what is older: 36h, 30d, 2w (default and least: 1d)",
    )  # fmt: skip
    if kind == "models":
        gc.add_argument(
            "--idle", type=duration, default=timedelta(days=30), metavar="AGE",
            help="the state of runs that nothing was written to for so long (default 30d)",
        )  # fmt: skip

    delete = command(
        "delete", "delete a version, or with --purge all that was made from somebody's recordings"
    )
    delete.add_argument("references", nargs="*", metavar="REFERENCE", help=a_reference)
    delete.add_argument("--dry-run", action="store_true", help=dry_run)
    delete.add_argument(
        "--purge",
        action="store_true",
        help="a speaker withdraws consent: find by lineage every model and voice made from the same recordings, "
        "delete them with the state of their runs, and leave a record in the store, below audit/",
    )
    delete.add_argument(
        "--dataset",
        action="append",
        default=[],
        help="with --purge: recordings, as 'show' names them; may be repeated",
    )
    delete.add_argument(
        "--source",
        action="append",
        default=[],
        help="with --purge: words of sources or consent; may be repeated",
    )
    delete.add_argument("--reason", help="with --purge: why, for the record")
    delete.add_argument("--yes", action="store_true", help="do not ask")


def run_upkeep(registry: Registry, kind: Kind, options: argparse.Namespace) -> int:
    """Run one of the commands.

    Raises:
        VitsError: What was asked for cannot be done; the message says why.
    """
    match options.command:
        case "verify":
            _verify(registry, kind, options.references, options.all, options.json)
        case "copy":
            _copy(registry, kind, options)
        case "gc":
            _gc(registry, kind, options)
        case "delete" if options.purge:
            _purge(registry, kind, options)
        case "delete":
            _delete(registry, kind, options)
    return 0


# ---------------------------------------------------------------------- verify, copy


def _verify(registry: Registry, kind: Kind, references: list[str], all_of_them: bool, as_json: bool) -> None:
    from shared.collection import every_version
    from shared.copying import damage

    if bool(references) == all_of_them:
        raise UserError("name the versions to verify, or say --all")
    problems: dict[str, list[str]] = {}
    for version in (
        every_version(registry, [kind])
        if all_of_them
        else (registry.resolve(kind, each) for each in references)
    ):
        with byte_bar(f"Verifying {version.reference}") as progress:
            problems[version.reference] = damage(registry.store, version, progress)
    for name in registry.names(kind) if all_of_them else ():
        existing = registry.versions(kind, name)
        for alias, id_ in registry.aliases(kind, name).items():
            if id_ not in existing:
                problems[f"{name}@{alias}"] = [
                    f"it points to {id_}, which does not exist: promote another version"
                ]
    bad = sum(map(bool, problems.values()))
    if as_json:
        print_json([{"reference": reference, "problems": found} for reference, found in problems.items()])
    else:
        print_table(
            ["version", "problems"], [[name, "\n".join(each) or "none"] for name, each in problems.items()]
        )
    if bad:
        raise CorruptObjectError(
            f"{bad} of {len(problems)} are damaged: publish them again, or copy them from elsewhere"
        )


def _copy(registry: Registry, kind: Kind, options: argparse.Namespace) -> None:
    from shared.collection import parents
    from shared.copying import copy_version
    from shared.manifests import check_name
    from shared.registry import Registry
    from shared.store import Store

    target = Registry(Store.open(options.to), registry.cache)
    if target.store.url == registry.store.url:
        raise UserError(f"{options.to} is the store that it would be copied from")
    for alias in options.alias:
        check_name(alias, "alias")
    version = registry.resolve(kind, options.reference)
    waiting, copied, absent = [version], [], []
    while waiting:
        one = waiting.pop(0)
        with byte_bar(f"Copying {one.reference}") as progress:
            copied.append((one, copy_version(registry.store, one, target, progress)))
        for prefix in parents(one, registry) if options.with_lineage else ():
            _, name, id_ = prefix.split("/")
            if not registry.store.exists(f"{prefix}/manifest.json"):
                absent.append(prefix)
            elif prefix not in {each.prefix for each, _ in copied}:
                waiting.append(registry.resolve("models", f"{name}/{id_}"))
    moves = [target.move_alias(kind, version.name, alias, version.id) for alias in options.alias]
    if options.json:
        print_json(
            {
                "to": target.store.url,
                "versions": [{"kind": v.kind, "reference": v.reference, "copied": new} for v, new in copied],
                "aliases": [move.model_dump(mode="json") for move in moves],
                "not_here": absent,
            }
        )
        return
    for one, new in copied:
        print(f"{one.prefix} {'copied to' if new else 'was already in'} {target.store.url}")
    for prefix in absent:
        print(f"{prefix}, which it was made from, is not in {registry.store.url}, so it was not copied")
    for move in moves:
        print(f"{move.name}@{move.alias} there is now {move.version}")


# ---------------------------------------------------------------------- deleting


def _gc(registry: Registry, kind: Kind, options: argparse.Namespace) -> None:
    from shared.collection import Collector, Rules

    rules = Rules(
        age=options.older_than,
        history=options.history,
        newest=options.keep,
        **({"idle": options.idle} if kind == "models" else {}),
    )
    collector = Collector(registry, rules)
    found = collector.find([kind])
    gone = [(garbage, not options.dry_run and collector.delete(garbage)) for garbage in found]
    if options.json:
        print_json([_garbage_json(garbage, deleted) for garbage, deleted in gone])
        return
    if not found:
        print(f"nothing to collect in {registry.store.url}")
        return
    print_table(
        ["", "what", "last written", "size", "why"],
        [
            [
                "would go" if options.dry_run else "deleted" if deleted else "kept: in use again",
                garbage.prefix,
                time(garbage.modified),
                size(garbage.bytes),
                garbage.why,
            ]
            for garbage, deleted in gone
        ],
    )
    total = size(sum(garbage.bytes for garbage, deleted in gone if deleted or options.dry_run))
    print(f"{total} would be freed; without --dry-run they are" if options.dry_run else f"{total} freed")


def _garbage_json(garbage: Garbage, deleted: bool) -> dict[str, object]:
    return {
        "what": garbage.what,
        "prefix": garbage.prefix,
        "bytes": garbage.bytes,
        "modified": garbage.modified.isoformat(),
        "why": garbage.why,
        "deleted": deleted,
    }


def _delete(registry: Registry, kind: Kind, options: argparse.Namespace) -> None:
    if options.dataset or options.source or options.reason:
        raise UserError("--dataset, --source and --reason go with --purge")
    if not options.references:
        raise UserError("name the versions to delete, as name/version")
    versions = [registry.resolve(kind, reference) for reference in options.references]
    for reference, version in zip(options.references, versions, strict=True):
        if reference != version.reference:
            raise UserError(
                f"{reference!r} may be another version tomorrow: to delete what it is now, name {version.reference}"
            )
        _refuse_if_pointed_to(registry, version)
        _refuse_if_made_from(registry, version, but=versions)
    if not options.dry_run:
        _ask(f"Delete {len(versions)} of the {kind} in {registry.store.url}?", options.yes)
        for version in sorted(versions, key=lambda version: version.manifest.created, reverse=True):
            _delete_unless_needed(registry, version)
    if options.json:
        print_json([{"reference": version.reference, "deleted": not options.dry_run} for version in versions])
        return
    for version in versions:
        freed = size(version.manifest.total_bytes)
        print(f"{version.reference} {'would be deleted' if options.dry_run else 'deleted'}: {freed}")


def _pointing(registry: Registry, version: Version) -> list[str]:
    """The aliases that point to a version."""
    aliases = registry.aliases(version.kind, version.name)
    return [alias for alias, id_ in aliases.items() if id_ == version.id]


def _refuse_if_pointed_to(registry: Registry, version: Version) -> None:
    for alias in _pointing(registry, version):
        raise UserError(
            f"{version.name}@{alias} points to {version.id}: promote another version first, "
            f"so that nobody who uses {version.name}@{alias} is left without"
        )


def _refuse_if_made_from(registry: Registry, version: Version, *, but: Collection[Version] = ()) -> None:
    """Refuse to delete what others come from, but for those that are deleted with it."""
    from shared.collection import descendants

    found = [each for each in descendants(version, registry) if each not in {other.prefix for other in but}]
    if found:
        raise UserError(
            f"{version.reference} stays, because of what comes from it and is found by way of it when a speaker "
            f"withdraws consent: {', '.join(found)}. Delete such versions first; an unfinished run has to end, or to "
            "be idle until 'vits models gc' removes its state (--idle 1d: after a day)"
        )


def _delete_unless_needed(registry: Registry, version: Version) -> None:
    """Delete a version after another look at what needs it: the question may have stood there for an hour."""
    from shared.collection import descendants

    def is_needed() -> bool:
        return bool(_pointing(registry, version) or descendants(version, registry))

    if not registry.delete(version, keep_if=is_needed):
        _refuse_if_pointed_to(registry, version)
        _refuse_if_made_from(registry, version)


def _purge(registry: Registry, kind: Kind, options: argparse.Namespace) -> None:
    from shared.withdrawal import UNREACHED, Withdrawals

    if not (options.references or options.dataset or options.source):
        raise UserError("say whose: references, --dataset or --source; 'show' names a version's recordings")
    if not options.reason and not options.dry_run:
        raise UserError("--purge leaves a record: say --reason '…', such as the date of the speaker's letter")
    if options.json and not (options.yes or options.dry_run):
        raise UserError(
            "--json shows nothing that could be confirmed: look at --dry-run first, then say --yes"
        )
    withdrawals = Withdrawals(registry)
    plan = withdrawals.plan(kind, options.references, datasets=options.dataset, sources=options.source)
    outcome = None
    if not options.json:
        _show_plan(plan)
    if not options.dry_run:
        _ask(f"Delete all of this from {registry.store.url} for good?", options.yes)
        outcome = withdrawals.carry_out(plan, reason=options.reason)
    if options.json:
        print_json(
            {
                "versions": [
                    {"kind": version.kind, "reference": version.reference, "why": why}
                    for version, why in plan.versions.values()
                ],
                "begun": [record.id for record in plan.begun],
                "gone": plan.gone,
                "runs": plan.runs,
                "datasets": plan.datasets,
                "aliases": plan.aliases,
                "undecided": plan.undecided,
                "unreached": UNREACHED,
                "deleted": outcome is not None and not outcome.remaining,
                "audit": outcome.audit if outcome else None,
            }
        )
    elif outcome:
        print(f"\nDeleted. The record: {outcome.audit[0]}")
    else:
        print("\nNothing was deleted. Without --dry-run, and with --reason, all of the first table is.")
    if outcome and outcome.remaining:
        raise CorruptObjectError(
            f"{len(outcome.remaining)} objects are still there, the first {outcome.remaining[0]}: "
            "somebody writes to them. Stop the run, and purge again"
        )


def _show_plan(plan: Plan) -> None:
    from shared.withdrawal import UNREACHED

    for record in plan.begun:
        print(
            f"Goes on from a purge of {time(record.created)} by the same words, {record.id}, which was not finished."
        )
    print_table(
        ["goes", "size", "why"],
        [
            *([prefix, size(v.manifest.total_bytes), why] for prefix, (v, why) in plan.versions.items()),
            *([prefix, "", "not there any more; what was made from it goes"] for prefix in plan.gone),
            *(
                [f"runs/{run}", "", "the state of a run that made them, or began from one"]
                for run in plan.runs
            ),
        ],
    )
    for heading, lines in [
        (
            "Aliases that will point to nothing; promote another version, or delete what uses them:",
            plan.aliases,
        ),
        (
            "Recordings of which the store takes nothing any more; some that may be used after all need another name:",
            plan.datasets,
        ),
        ("Cannot be told, and stays; look at each:", plan.undecided),
        ("Cannot be reached from here; delete it yourself:", UNREACHED),
    ]:
        if lines:
            print("\n".join([heading, *(f"  - {line}" for line in lines)]))


def _ask(question: str, yes: bool) -> None:
    """Go on if the user says so.

    Raises:
        UserError: There is nobody to ask, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("nobody is there to confirm this: look at --dry-run first, then say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # standard output is the answer's alone
    if input().strip().lower() not in {"y", "yes"}:
        raise UserError("nothing was deleted")
