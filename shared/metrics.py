"""Every metric that the suite exposes, declared in one place.

Names begin with ``vits_`` and carry their base unit. ``prometheus_client`` decides when it is first imported
whether it counts for one process or for several, from an environment variable that the server sets; so it is
imported when a `Metrics` is made, and never with this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

#: Seconds, from one short word on a fast machine to a long text on a slow one.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0)


class Metrics:
    """The metrics of one process.

    Args:
        registry: Where they are registered; the process's own where not given.

    Attributes:
        registry: Where they are registered.
        requests: Requests answered, by ``transport`` (``http``, ``grpc``) and ``code`` (its own status).
        audio_seconds: Seconds of audio made, by ``voice``.
        synthesis_seconds: Time that the engine took for a text, by ``voice``.
        time_to_first_audio_seconds: Time from a request's arrival to its first audio, by ``transport``.
        requests_in_flight: Requests that were admitted and are not yet answered.
        voices_loaded: Voices in memory.
        voice_load_seconds: Time to fetch and open a voice.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client
        from prometheus_client import Counter, Gauge, Histogram

        self.registry = where = prometheus_client.REGISTRY if registry is None else registry
        self.requests = Counter(
            "vits_requests_total", "Requests answered.", ("transport", "code"), registry=where
        )
        self.audio_seconds = Counter(
            "vits_audio_seconds_total", "Seconds of audio made.", ("voice",), registry=where
        )
        self.synthesis_seconds = Histogram(
            "vits_synthesis_seconds",
            "Time that the engine took for a text.",
            ("voice",),
            buckets=SECONDS,
            registry=where,
        )
        self.time_to_first_audio_seconds = Histogram(
            "vits_time_to_first_audio_seconds",
            "Time from a request's arrival to its first audio.",
            ("transport",),
            buckets=SECONDS,
            registry=where,
        )
        self.requests_in_flight = Gauge(
            "vits_requests_in_flight",
            "Requests that were admitted and are not yet answered.",
            multiprocess_mode="livesum",
            registry=where,
        )
        self.voices_loaded = Gauge(
            "vits_voices_loaded", "Voices in memory.", multiprocess_mode="livesum", registry=where
        )
        self.voice_load_seconds = Histogram(
            "vits_voice_load_seconds", "Time to fetch and open a voice.", buckets=SECONDS, registry=where
        )
