"""The dashboard of serving: whether voices are spoken, how soon, and what keeps them from it."""

from deploy.monitoring.grafana import (
    BYTES,
    RATE,
    RATIO,
    SECONDS,
    Dashboard,
    Panel,
    Row,
    mean,
    quantile,
    quantiles,
)


def share(outcome: str) -> str:
    """The share of the texts with an outcome; 0 where nobody asks for anything."""
    all_of_them = "sum(rate(vits_requests_total{$pods}[$__rate_interval]))"
    these = f'sum(rate(vits_requests_total{{$pods, outcome="{outcome}"}}[$__rate_interval]))'
    return f"{these} / ({all_of_them} > 0) or vector(0)"


SERVING = Dashboard(
    uid="vits-serving",
    title="VITS · serving",
    description="Whether voices are spoken, how soon, and what keeps them from it.",
    variables=[("namespace", "vits_backlog_seconds"), ("instance", "vits_backlog_seconds")],
    rows=[
        Row(
            "Is it well?",
            [
                Panel(
                    "Servers",
                    "Servers that report a backlog. An autoscaler moves it.",
                    [("", "count(vits_backlog_seconds{$pods})")],
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Texts a second",
                    "Texts of all doors, whatever became of them.",
                    [("", "sum(rate(vits_requests_total{$pods}[$__rate_interval]))")],
                    unit=RATE,
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "First audio, 95 %",
                    "Nineteen texts of twenty are heard sooner. Autoscaling guards 0.8 s; an alert comes at 1.5 s.",
                    [("", quantile("vits_first_audio_seconds", 0.95))],
                    unit=SECONDS,
                    kind="stat",
                    width=4,
                    limits=(0.8, 1.5),
                ),
                Panel(
                    "Backlog of a server",
                    "Seconds that a new text waits. Autoscaling aims at 2 s; texts are refused from 10 s on.",
                    [("", "avg(vits_backlog_seconds{$pods})")],
                    unit=SECONDS,
                    kind="stat",
                    width=4,
                    limits=(2, 5),
                ),
                Panel(
                    "Turned away",
                    "Share of the texts that were refused for want of room (429, RESOURCE_EXHAUSTED).",
                    [("", share("overloaded"))],
                    unit=RATIO,
                    kind="stat",
                    width=4,
                    limits=(0.001, 0.01),
                ),
                Panel(
                    "Failed",
                    "Share of the texts that failed through our fault.",
                    [("", share("failed"))],
                    unit=RATIO,
                    kind="stat",
                    width=4,
                    limits=(0.0001, 0.01),
                ),
            ],
        ),
        Row(
            "How soon is something heard?",
            [
                Panel(
                    "Time to first audio",
                    "From a text's arrival to its first audio, all doors.",
                    quantiles("vits_first_audio_seconds"),
                    unit=SECONDS,
                    limits=(0.8, 1.5),
                ),
                Panel(
                    "Where the time goes",
                    "Means: waiting in the queue, encoder and flow for a segment, one call of the decoder.",
                    [
                        ("queue", mean("vits_queue_seconds")),
                        ("encoder and flow", mean("vits_encoder_seconds")),
                        ("decoder call", mean("vits_decoder_call_seconds")),
                    ],
                    unit=SECONDS,
                ),
                Panel(
                    "First audio, spread",
                    "Darker: more texts. Two bands mean two kinds of texts, or of servers.",
                    [
                        (
                            "{{le}}",
                            "sum by (le) (increase(vits_first_audio_seconds_bucket{$pods}[$__rate_interval]))",
                        )
                    ],
                    unit=SECONDS,
                    kind="heatmap",
                ),
                Panel(
                    "First audio by door, 95 %",
                    "All doors open onto the same queue: if one is slower, it is the door or its callers.",
                    [("{{door}}", quantile("vits_first_audio_seconds", 0.95, "door"))],
                    unit=SECONDS,
                    width=12,
                ),
                Panel(
                    "Time to last audio",
                    "Depends on the texts' lengths and on how fast callers read.",
                    quantiles("vits_total_seconds"),
                    unit=SECONDS,
                    width=12,
                    log=True,
                ),
            ],
        ),
        Row(
            "Does it keep up?",
            [
                Panel(
                    "Backlog",
                    "How long what waits will take. Uneven lines mean that callers stay with their server.",
                    [("{{instance}}", "vits_backlog_seconds{$pods}")],
                    unit=SECONDS,
                    limits=(2, 10),
                ),
                Panel(
                    "Audio made in a second",
                    "Seconds of audio a second, by voice: how many listeners could be spoken to at once.",
                    [
                        (
                            "{{voice}}",
                            "sum by (voice) (rate(vits_audio_seconds_total{$pods}[$__rate_interval]))",
                        )
                    ],
                    stack=True,
                ),
                Panel(
                    "Servers and texts in flight",
                    "Both move together when autoscaling works.",
                    [
                        ("servers", "count(vits_backlog_seconds{$pods})"),
                        ("texts in flight", "sum(vits_requests_in_flight{$pods})"),
                    ],
                ),
            ],
        ),
        Row(
            "What goes wrong?",
            [
                Panel(
                    "Texts by outcome",
                    "refused: the caller's mistake; overloaded: no room; late: a deadline passed; failed: ours.",
                    [
                        (
                            "{{outcome}}",
                            "sum by (outcome) (rate(vits_requests_total{$pods}[$__rate_interval]))",
                        )
                    ],
                    unit=RATE,
                    stack=True,
                ),
                Panel(
                    "Answers by code",
                    "The doors' own codes, everything that was asked included.",
                    [
                        (
                            "{{door}} {{code}}",
                            "sum by (door, code) (rate(vits_responses_total{$pods}[$__rate_interval]))",
                        )
                    ],
                    unit=RATE,
                    stack=True,
                ),
                Panel(
                    "Failures",
                    "All should be 0: calls of an engine, news of the voices, versions that were not loaded.",
                    [
                        (
                            "engine {{voice}}",
                            "sum by (voice) (increase(vits_engine_failures_total{$pods}[5m]))",
                        ),
                        ("store", "sum(increase(vits_store_failures_total{$pods}[5m]))"),
                        (
                            "refused {{voice}}",
                            "sum by (voice) (increase(vits_voice_refusals_total{$pods}[5m]))",
                        ),
                    ],
                ),
            ],
        ),
        Row(
            "What do the engines do?",
            [
                Panel(
                    "Real-time factor",
                    "Engine time for a second of audio, the mean by voice; 0.1 is ten times faster than speech.",
                    [("{{voice}}", mean("vits_real_time_factor_ratio", "voice"))],
                ),
                Panel(
                    "Decoder calls",
                    "Everybody else waits as long as one call: 150 ms is the aim.",
                    quantiles("vits_decoder_call_seconds"),
                    unit=SECONDS,
                ),
                Panel(
                    "Windows in a call",
                    "More than one where a wide call is worth it, on a GPU above all.",
                    [("mean", mean("vits_decoder_batch_windows"))],
                ),
                Panel(
                    "Work that is heard",
                    "Share of a window's frames that are heard; the rest is halo and padding.",
                    [("decoder", mean("vits_window_occupancy_ratio"))],
                    unit=RATIO,
                    top=1,
                    width=12,
                ),
                Panel(
                    "Work that is padding",
                    "Share of what encoder and flow compute for nothing.",
                    [("{{graph}}", mean("vits_padding_ratio", "graph"))],
                    unit=RATIO,
                    top=1,
                    width=12,
                ),
            ],
        ),
        Row(
            "Which voices, and in how much memory?",
            [
                Panel(
                    "Versions in memory",
                    "How many servers hold which version. Two of a voice for long: see VitsVersionsDiffer.",
                    [("", "count by (voice, version) (vits_voice_loaded{$pods} == 1)")],
                    kind="table",
                ),
                Panel(
                    "Voices come and go",
                    "Loaded, and put out of memory for others, in five minutes. Both high: too little memory.",
                    [
                        ("loaded", "sum(increase(vits_voice_load_seconds_count{$pods}[5m]))"),
                        ("evicted", "sum(increase(vits_voice_evictions_total{$pods}[5m]))"),
                        ("in memory", "sum(vits_voices_loaded{$pods})"),
                    ],
                ),
                Panel(
                    "Time to load a voice",
                    "Fetched, opened and warmed: what the first caller of a voice waits.",
                    quantiles("vits_voice_load_seconds"),
                    unit=SECONDS,
                ),
                Panel(
                    "Memory",
                    "Of the process, and what its voices are taken to need.",
                    [
                        (
                            "process {{instance}}",
                            'process_resident_memory_bytes{job="vits-serve", $pods}',
                        ),
                        ("voices {{instance}}", "vits_voice_memory_bytes{$pods}"),
                    ],
                    unit=BYTES,
                ),
                Panel(
                    "Processors",
                    "CPUs in use by each server; VITS_THREADS is the most that it takes.",
                    [
                        (
                            "{{instance}}",
                            'rate(process_cpu_seconds_total{job="vits-serve", $pods}[$__rate_interval])',
                        )
                    ],
                ),
                Panel(
                    "Open files and connections",
                    "Share of what the process may open.",
                    [
                        (
                            "{{instance}}",
                            'process_open_fds{job="vits-serve", $pods} / process_max_fds{job="vits-serve", $pods}',
                        )
                    ],
                    unit=RATIO,
                    top=1,
                    limits=(0.5, 0.8),
                ),
            ],
        ),
    ],
)
