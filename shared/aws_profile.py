"""Credentials of an AWS profile, which the store's client cannot read by itself: keys in AWS's own file, or what its
own command line answers (single sign-on, assumed roles)."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError

if TYPE_CHECKING:
    from obstore.store import S3Credential


def profile_credentials() -> Callable[[], S3Credential] | None:
    """What gives the credentials of ``AWS_PROFILE``, or else the keys of AWS's file under ``default``.

    The order is that of AWS's own tools: keys in the environment, the profile that is named, a web identity, the file's
    default, a container's or a machine's role. None where the client finds what applies by itself.

    Raises:
        UserError: There is no such profile, or nothing that can read it.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    profile = os.environ.get("AWS_PROFILE")
    if not profile:
        default = None if "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ else _from_file("default")
        return (lambda: default) if default else None
    found = _from_file(profile) or _from_command(profile)
    if found["expires_at"] is None:
        return lambda: found
    return lambda: _from_command(profile)


def _from_file(profile: str) -> S3Credential | None:
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        # Not the error's own words: they quote the line.
        raise UserError(f"{path} is not a file of AWS profiles: {type(error).__name__}") from None
    if not parser.has_option(profile, "aws_secret_access_key"):
        return None
    return {
        "access_key_id": parser.get(profile, "aws_access_key_id", fallback=""),
        "secret_access_key": parser.get(profile, "aws_secret_access_key"),
        "token": parser.get(profile, "aws_session_token", fallback=None),
        "expires_at": None,
    }


def _from_command(profile: str) -> S3Credential:
    command = ["aws", "configure", "export-credentials", "--format", "process", "--profile", profile]
    remedy = "log in to it (aws sso login), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead of AWS_PROFILE"
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, text=True)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"the profile {profile!r} of AWS_PROFILE has no keys in AWS's file, and AWS's command line, which could "
            f"know it, does not answer: install it, {remedy}"
        ) from error
    if done.returncode:
        raise UserError(
            f"the profile {profile!r} of AWS_PROFILE cannot be used: {done.stderr.strip()}. Correct it, {remedy}"
        )
    found = json.loads(done.stdout)
    expires = found.get("Expiration")
    return {
        "access_key_id": found["AccessKeyId"],
        "secret_access_key": found["SecretAccessKey"],
        "token": found.get("SessionToken"),
        "expires_at": datetime.fromisoformat(expires) if expires else None,
    }
