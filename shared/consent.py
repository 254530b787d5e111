"""What a speaker has withdrawn from a store is not published in it again.

The records of withdrawals, below ``audit/``, name the recordings and the versions that went. A run that was under way
then, a folder that was left and a copy in another store all end here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import JsonValue

from shared.errors import ConsentError
from shared.manifests import Withdrawal, parse
from shared.store import Store


def withdrawals(store: Store) -> Iterator[Withdrawal]:
    """The records of all withdrawals, carried out or not.

    Raises:
        CorruptObjectError: A record cannot be read.
        StoreError: The store failed.
    """
    for item in store.list("audit"):
        if not item.path.endswith("-done.json"):
            yield parse(Withdrawal, store.read(item.path), store.address(item.path))


def refuse_withdrawn(store: Store, *, dataset: JsonValue = None, versions: Collection[str] = ()) -> None:
    """Make sure that nobody has withdrawn what something is made of.

    Args:
        store: The store that it is to be published in.
        dataset: Its recordings, as the lineage of models names them.
        versions: The folders in the store of the versions that it is, or is made from.

    Raises:
        ConsentError: Somebody has.
        CorruptObjectError: A record cannot be read.
        StoreError: The store failed.
    """
    for record in withdrawals(store):
        where = store.address(f"audit/{record.id}.json")
        if dataset in record.datasets:
            raise ConsentError(
                f"consent to the recordings {dataset!r} was withdrawn ({where}), so nothing that is made of them is "
                "published there. Delete the output folders of their training; recordings that may be used need "
                "another name"
            )
        for each in record.versions:
            if each.prefix in versions:
                raise ConsentError(
                    f"{each.prefix} was deleted because consent was withdrawn ({where}), so "
                    "neither it nor anything made from it is published there. Delete the copies that are left, such "
                    "as output folders of training; use another base or model"
                )
