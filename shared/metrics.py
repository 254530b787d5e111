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
#: Shares of a whole.
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one serving process.

    Args:
        registry: Where they are registered; the process's own where not given.

    Attributes:
        registry: Where they are registered.
        requests: Texts that were to be spoken, by ``door`` (``http``, ``websocket``, ``grpc``), ``voice`` (empty
            where it is not known) and ``outcome`` (``spoken``, ``cancelled``, ``refused``, ``overloaded``,
            ``late``, ``failed``).
        responses: Answers of any kind, by ``door`` and ``code`` (its own status).
        requests_in_flight: Texts that are waiting or being spoken.
        queue_seconds: Time from a text's admission to its first computation.
        encoder_seconds: Time of encoder and flow for one segment, as far as its first window needs them, by ``voice``.
        first_audio_seconds: Time from a text's arrival to its first audio, by ``door``.
        total_seconds: Time from a text's arrival to its last audio, by ``door``.
        audio_seconds: Seconds of audio made, by ``voice``.
        real_time_factor: Engine time for a text over the length of its audio, by ``voice``.
        backlog_seconds: How long what waits will take, as predicted.
        decoder_call_seconds: Time of one call of the decoder, the rest of the flow of a long segment included, by
            ``voice``.
        decoder_batch_windows: Windows decoded in one call.
        window_occupancy_ratio: Share of the frames of a window that are heard; the rest is halo and padding.
        padding_ratio: Share of what ``graph`` (``encoder``, ``flow``) computes that is padding.
        engine_failures: Calls of an engine that failed, by ``voice``.
        voices_loaded: Voices in memory.
        voice_loaded: 1 for each ``version`` of a ``voice`` in memory, with the ``variant`` that it speaks with.
        voice_memory_bytes: Memory that the loaded voices are taken to need.
        voice_load_seconds: Time to fetch, open and warm a voice.
        voice_refusals: Versions of a ``voice`` that could not be loaded, so that an older one stayed.
        voice_evictions: Voices that made room for others.
        store_failures: Times that the store could not be asked for news of the voices.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client
        from prometheus_client import Counter, Gauge, Histogram

        self.registry = where = prometheus_client.REGISTRY if registry is None else registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vits_{name}_total", text, labels, registry=where)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vits_{name}", text, labels, registry=where)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"vits_{name}", text, labels, buckets=buckets, registry=where)

        self.requests = counter("requests", "Texts that were to be spoken.", "door", "voice", "outcome")
        self.responses = counter("responses", "Answers of any kind.", "door", "code")
        self.requests_in_flight = gauge("requests_in_flight", "Texts that are waiting or being spoken.")
        self.queue_seconds = histogram(
            "queue_seconds", "Time from a text's admission to its first computation."
        )
        self.encoder_seconds = histogram(
            "encoder_seconds",
            "Time of encoder and flow for one segment, as far as its first window needs them.",
            "voice",
        )
        self.first_audio_seconds = histogram(
            "first_audio_seconds", "Time from a text's arrival to its first audio.", "door"
        )
        self.total_seconds = histogram(
            "total_seconds", "Time from a text's arrival to its last audio.", "door"
        )
        self.audio_seconds = counter("audio_seconds", "Seconds of audio made.", "voice")
        self.real_time_factor = histogram(
            "real_time_factor_ratio",
            "Engine time for a text over the length of its audio.",
            "voice",
            buckets=(0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0),
        )
        self.backlog_seconds = gauge("backlog_seconds", "How long what waits will take, as predicted.")
        self.decoder_call_seconds = histogram(
            "decoder_call_seconds",
            "Time of one call of the decoder, the rest of the flow of a long segment included.",
            "voice",
        )
        self.decoder_batch_windows = histogram(
            "decoder_batch_windows", "Windows decoded in one call.", buckets=(1, 2, 4, 8, 16, 32)
        )
        self.window_occupancy_ratio = histogram(
            "window_occupancy_ratio", "Share of the frames of a window that are heard.", buckets=TENTHS
        )
        self.padding_ratio = histogram(
            "padding_ratio", "Share of what a graph computes that is padding.", "graph", buckets=TENTHS
        )
        self.engine_failures = counter("engine_failures", "Calls of an engine that failed.", "voice")
        self.voices_loaded = gauge("voices_loaded", "Voices in memory.")
        self.voice_loaded = gauge(
            "voice_loaded", "Versions of voices in memory.", "voice", "version", "variant"
        )
        self.voice_memory_bytes = gauge(
            "voice_memory_bytes", "Memory that the loaded voices are taken to need."
        )
        self.voice_load_seconds = histogram("voice_load_seconds", "Time to fetch, open and warm a voice.")
        self.voice_refusals = counter(
            "voice_refusals", "Versions that could not be loaded, so that an older one stayed.", "voice"
        )
        self.voice_evictions = counter("voice_evictions", "Voices that made room for others.")
        self.store_failures = counter(
            "store_failures", "Times that the store could not be asked for news of the voices."
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
        data_wait_ratio: Share of the steps' time that was spent waiting for batches, as last logged.
        finding: 1 for each ``name`` of what the run's diagnosis has found.
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
        self.data_wait_ratio = gauge(
            "data_wait_ratio", "Share of the steps' time that was spent waiting for batches, as last logged."
        )
        self.finding = gauge("finding", "What the run's diagnosis has found.", "name")

    def training_value(self, name: str, value: float) -> None:
        """Take in one of the values that a step returns: a loss, or ``gradient_norm_<network>``."""
        if name.startswith("gradient_norm_"):
            self.gradient_norm.labels(name.removeprefix("gradient_norm_")).set(value)
        else:
            self.loss.labels("train", name).set(value)
