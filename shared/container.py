"""What to say where one of our images runs: it sees only what is mounted, and is a user who owns nothing there."""

from __future__ import annotations

import errno
import os

#: Set in the images, and nowhere else.
IMAGE = "VITS_IMAGE"
#: The user of the images, unless another is asked for.
USER_ID = 10001


def mount_advice(folder: str) -> str:
    """How the container comes by a folder of the machine's; nothing outside of our images.

    Args:
        folder: Its path below the root of the container: ``models``.

    Returns:
        A sentence without its full stop, with a space before it, or the empty string.
    """
    if not os.environ.get(IMAGE):
        return ""
    return (
        f' A container sees only what is mounted: mount it at /{folder}, as with -v "$PWD/{folder}:/{folder}"'
    )


def user_advice(reason: str) -> str:
    """How a process may use the folders that are mounted; nothing but for the own user of our images.

    Args:
        reason: An error's own words. They may be of something else than permissions.

    Returns:
        A sentence with the full stop of the one before it and without its own, or the empty string.
    """
    refused = os.strerror(errno.EACCES).lower() in reason.lower()
    if not refused or not os.environ.get(IMAGE) or os.getuid() != USER_ID:
        return ""
    return f'. The container runs as user {USER_ID}: run it as you, with --user "$(id -u):$(id -g)"'
