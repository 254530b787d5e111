"""Keeps a published protocol's promise: within a version, nothing is removed, renumbered, renamed or retyped.

``contract.json`` beside a ``.proto`` says what was published. Run as a program (``make proto`` does), this adds what
is new to it, and refuses what breaks it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

from shared.protos.vits.synthesis.v1 import synthesis_pb2

CONTRACT = Path(synthesis_pb2.__file__).with_name("contract.json")

_TYPES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def describe(file: FileDescriptor) -> dict[str, Any]:
    """What clients of a protocol depend on, as nested dictionaries: every number with what it stands for."""
    return {
        "package": file.package,
        "messages": {
            message.name: {str(field.number): _field(field) for field in message.fields}
            for message in file.message_types_by_name.values()
        },
        "enums": {
            enum.name: {str(value.number): value.name for value in enum.values}
            for enum in file.enum_types_by_name.values()
        },
        "services": {
            service.name: {
                method.name: {
                    "takes": method.input_type.full_name,
                    "gives": method.output_type.full_name,
                    "client_streams": method.client_streaming,
                    "server_streams": method.server_streaming,
                }
                for method in service.methods
            }
            for service in file.services_by_name.values()
        },
    }


def _field(field: FieldDescriptor) -> dict[str, Any]:
    of = field.message_type or field.enum_type
    return {
        "name": field.name,
        "type": of.full_name if of else _TYPES[field.type],
        "repeated": field.is_repeated,
        "presence": field.has_presence,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
    }


def breaks(published: object, now: object, path: str = "") -> list[str]:
    """What of ``published`` is not in ``now`` any more, or is something else; what was added is not told."""
    if isinstance(published, dict) and isinstance(now, dict):
        found = [f"{path}{key}: was removed" for key in published if key not in now]
        for key in published.keys() & now.keys():
            found += breaks(published[key], now[key], f"{path}{key}.")
        return sorted(found)
    return [] if published == now else [f"{path.rstrip('.')}: was {published!r} and is {now!r}"]


def main() -> int:
    """Bring the contract up to date."""
    now = describe(synthesis_pb2.DESCRIPTOR)
    broken = breaks(json.loads(CONTRACT.read_text()), now) if CONTRACT.exists() else []
    if broken:
        print(
            f"The protocol breaks what {CONTRACT} says was published. Add instead of changing:",
            *broken,
            sep="\n  - ",
            file=sys.stderr,
        )
        return 1
    CONTRACT.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
