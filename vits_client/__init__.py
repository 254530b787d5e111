"""A small client of a `vits serve`: whole texts, streams, texts in pieces, batches; for threads and for asyncio.

::

    from vits_client import Client

    with Client("grpc://127.0.0.1:50051") as client:
        client.speak("Hola, ¿cómo estás?", seed=7).save("hola.wav")

It speaks gRPC (``vits.synthesis.v1``); for HTTP, any client of OpenAI's speech API will do. It needs ``grpcio``,
``protobuf`` and ``googleapis-common-protos``, and nothing that the server needs.
"""

from vits_client.aio import AsyncClient, AsyncConversation, AsyncSpeechStream
from vits_client.errors import (
    AccessError,
    ClientError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    QuotaError,
    ServerError,
    StoppedError,
    UnavailableError,
)
from vits_client.messages import (
    BatchResult,
    Cancelled,
    Chunk,
    End,
    Event,
    Flushed,
    Options,
    Sentence,
    Speech,
    Start,
    Timestamp,
    Voice,
)
from vits_client.sync import Client, Conversation, SpeechStream

__all__ = [
    "AccessError",
    "AsyncClient",
    "AsyncConversation",
    "AsyncSpeechStream",
    "BatchResult",
    "Cancelled",
    "Chunk",
    "Client",
    "ClientError",
    "Conversation",
    "DeadlineError",
    "End",
    "Event",
    "Flushed",
    "InvalidRequestError",
    "NotFoundError",
    "Options",
    "OverloadedError",
    "QuotaError",
    "Sentence",
    "ServerError",
    "Speech",
    "SpeechStream",
    "Start",
    "StoppedError",
    "Timestamp",
    "UnavailableError",
    "Voice",
]
