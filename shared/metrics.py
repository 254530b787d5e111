"""Every metric that the suite exposes, declared in one place.

Names begin with ``vits_`` and carry their base unit. ``prometheus_client`` decides when it is first imported
whether it counts for one process or for several, from an environment variable that the server clears; so it is
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
        requests: Texts that were to be spoken, by ``door`` (``http``, ``websocket``, ``grpc``), ``voice`` and
            ``outcome`` (``spoken``, ``cancelled``, ``refused``, ``overloaded``, ``late``, ``failed``).
        responses: Answers of any kind, by ``door`` and ``code`` (its own status).
        audio_seconds: Seconds of audio made, by ``voice``.
        synthesis_seconds: Time that the engine took for a text, by ``voice``.
        first_audio_seconds: Time from a request's arrival to its first audio, by ``door``.
        requests_in_flight: Requests that were admitted and are not yet answered.
        voices_loaded: Voices in memory.
        voice_load_seconds: Time to fetch and open a voice.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client
        from prometheus_client import Counter, Gauge, Histogram

        self.registry = where = prometheus_client.REGISTRY if registry is None else registry
        self.requests = Counter(
            "vits_requests_total",
            "Texts that were to be spoken.",
            ("door", "voice", "outcome"),
            registry=where,
        )
        self.responses = Counter(
            "vits_responses_total", "Answers of any kind.", ("door", "code"), registry=where
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
        self.first_audio_seconds = Histogram(
            "vits_first_audio_seconds",
            "Time from a request's arrival to its first audio.",
            ("door",),
            buckets=SECONDS,
            registry=where,
        )
        self.requests_in_flight = Gauge(
            "vits_requests_in_flight",
            "Requests that were admitted and are not yet answered.",
            registry=where,
        )
        self.voices_loaded = Gauge("vits_voices_loaded", "Voices in memory.", registry=where)
        self.voice_load_seconds = Histogram(
            "vits_voice_load_seconds", "Time to fetch and open a voice.", buckets=SECONDS, registry=where
        )


class TrainingMetrics:
    """The metrics of one training run.

    Args:
        registry: Where they are registered; one of their own where not given.

    Attributes:
        registry: Where they are registered.
        step: Steps done.
        planned_steps: Steps of the whole run.
        epoch: Passes over the training recordings.
        loss: Losses as last logged, by ``split`` (``train``, ``held_out``) and ``loss``.
        gradient_norm: Norms of the gradients before clipping, by ``network``.
        learning_rate: Learning rates, by ``network``.
        step_seconds: Time of a step, as last logged.
        samples_per_second: Recordings trained on in a second, as last logged.
        evaluations: Evaluations done.
        evaluation_seconds: Time that they took.
        checkpoints: Checkpoints completed.
        checkpoint_seconds: Time that writing and uploading them took.
        checkpoint_step: Step of the newest complete one.
        checkpoint_failures: Checkpoints that could not be written or uploaded.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.registry = where = CollectorRegistry() if registry is None else registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vits_training_{name}", text, labels, registry=where)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vits_training_{name}_total", text, registry=where)

        self.step = gauge("step", "Steps done.")
        self.planned_steps = gauge("planned_steps", "Steps of the whole run.")
        self.epoch = gauge("epoch", "Passes over the training recordings.")
        self.loss = gauge("loss", "Losses as last logged.", "split", "loss")
        self.gradient_norm = gauge("gradient_norm", "Norms of the gradients before clipping.", "network")
        self.learning_rate = gauge("learning_rate", "Learning rates.", "network")
        self.step_seconds = gauge("step_seconds", "Time of a step, as last logged.")
        self.samples_per_second = gauge(
            "samples_per_second", "Recordings trained on in a second, as last logged."
        )
        self.evaluations = counter("evaluations", "Evaluations done.")
        self.evaluation_seconds = counter("evaluation_seconds", "Time that evaluations took.")
        self.checkpoints = counter("checkpoints", "Checkpoints completed.")
        self.checkpoint_seconds = counter(
            "checkpoint_seconds", "Time that writing and uploading checkpoints took."
        )
        self.checkpoint_step = gauge("checkpoint_step", "Step of the newest complete checkpoint.")
        self.checkpoint_failures = counter(
            "checkpoint_failures", "Checkpoints that could not be written or uploaded."
        )

    def training_value(self, name: str, value: float) -> None:
        """Take in one of the values that a step returns: a loss, or ``gradient_norm_<network>``."""
        if name.startswith("gradient_norm_"):
            self.gradient_norm.labels(name.removeprefix("gradient_norm_")).set(value)
        else:
            self.loss.labels("train", name).set(value)
