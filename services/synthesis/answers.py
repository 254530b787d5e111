"""What every transport answers alike: audio as bytes, and errors in words that are a client's business."""

from __future__ import annotations

from services.synthesis.speaker import Spoken
from shared.audio import encode_wav, to_pcm16
from shared.errors import (
    ConfigError,
    ConsentError,
    CorruptObjectError,
    DataError,
    DeadlineError,
    DivergenceError,
    HubUnreachableError,
    MissingExtraError,
    ModelError,
    OverloadedError,
    StoreError,
    UserError,
)

_BROKEN_VOICE = "This voice cannot be used at present; the server's log says why."
_STORE = "The server cannot read its store of voices at present; its log says why. Try again later."
_LATE = "The deadline of the request passed before it was answered."
_INTERNAL = "The server failed; its log says why."

#: Errors that a client cannot mend, and whose own messages may tell of paths. The first match counts.
_SERVERS_OWN: tuple[tuple[type[Exception], str], ...] = (
    (ConfigError, _BROKEN_VOICE),
    (ModelError, _BROKEN_VOICE),
    (MissingExtraError, _BROKEN_VOICE),
    (CorruptObjectError, _BROKEN_VOICE),
    (StoreError, _STORE),
    (DataError, _INTERNAL),
    (DivergenceError, _INTERNAL),
    (DeadlineError, _LATE),
    (ConsentError, _INTERNAL),
    (HubUnreachableError, _INTERNAL),
)


def public_message(error: BaseException) -> str:
    """What a client is told of an error. What it cannot mend it is told in general terms."""
    for kind, message in _SERVERS_OWN:
        if isinstance(error, kind):
            return message
    return str(error) if isinstance(error, UserError | OverloadedError) else _INTERNAL


def pack_wav(spoken: Spoken) -> bytes:
    """RIFF WAVE, 16 bits."""
    return encode_wav(spoken.samples, spoken.sampling_rate)


def pack_pcm(spoken: Spoken) -> bytes:
    """Signed 16-bit little-endian samples."""
    return to_pcm16(spoken.samples).astype("<i2").tobytes()
