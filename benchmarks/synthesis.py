"""How fast does a voice speak and how much memory does it take, beside the programs that others use?

`python -m benchmarks.synthesis --model MODEL` measures a model folder: `transformers` (its pipeline where it can
load the model, its forward otherwise), ONNX Runtime as it comes on the whole utterance, `piper-tts` and
`sherpa-onnx` where they are installed, and each variant of our voice. Without ``--model`` the model has MMS's size
and random weights.

Every system is a process of its own, with the same number of threads. The rounds go through all systems in turn,
so that what else the machine does falls on all alike; the figures are medians. The audio is as long as the system
itself makes it: the real-time factor divides by that. First audio is when the first samples could be played.
Memory is the process's high-water mark after a length and all that are shorter. A second table has the decoder
alone, a window at a time, in one process, beside ONNX Runtime as it comes on the same window.

Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shared.voice import Voice, VoiceSpec
from shared.voice.engine import open_engine, why_not
from shared.voice.noise import Stream, standard_normal
from shared.voice.windows import plan_windows

SECONDS = (1, 5, 20, 60)
CALLS_A_ROUND = 5
#: The kind of model that the pipeline of `transformers` loads.
PIPELINE_READS = "vits"

#: Standard deviation of speech before the decoder's hyperbolic tangent, where full scale is 1.
SPEECH_LEVEL = 0.2
SENTENCES = (
    "the boat lay in the bay until the evening came.",
    "nobody had told them how long the road would be.",
    "by the time the rain was over, the market had closed and the square was empty.",
    "he opened the letter, read it twice, and put it back on the table.",
    "there is a train at seven, and another one a little after nine.",
)

#: Makes audio piece by piece: (text) → samples of each piece, and the sampling rate.
Speak = Callable[[str], Iterator[int]]


@dataclass(frozen=True)
class Paths:
    """What the systems read.

    Attributes:
        model: The model folder.
        voice: Our voice folder.
        piper: Piper's ONNX file, where there is one.
        sherpa: A folder for sherpa-onnx, where there is one.
        threads: For every system.
    """

    model: str
    voice: str
    piper: str | None
    sherpa: str | None
    threads: int


# --- The systems, each imported in its own process --------------------------------------------------------


def ours(paths: Paths, variant: str) -> tuple[Speak, int]:
    """A variant of our voice, with its windows compiled beforehand, as a server does."""
    voice = Voice.open(Path(paths.voice), variant=variant, threads=paths.threads)
    voice.warm_up()
    return lambda text: (len(piece) for piece in voice.stream(text, seed=0)), voice.sampling_rate


def whole_latents(voice: Voice, text: str) -> NDArray[np.float32]:
    """A text as one utterance, uncut, as far as the decoder: ``[D, F]``."""
    ids = voice.front_end.tokenize(text).ids
    scale = np.float32(voice.spec.defaults.noise_scale_duration)
    noise = standard_normal(0, Stream.DURATION, length=len(ids), channels=2)
    prior = voice.encode(ids, 0, noise * scale)
    durations = voice.durations(prior, speaking_rate=voice.spec.defaults.speaking_rate)
    channels = voice.spec.latent_channels
    noise = standard_normal(0, Stream.PRIOR, length=int(durations.sum()), channels=channels)
    return voice.transform(prior, durations, noise * np.float32(voice.spec.defaults.noise_scale), 0)


def raw_session(paths: Paths, graph: str) -> Any:
    """One of our fp32 graphs in ONNX Runtime with its default settings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = paths.threads
    return onnxruntime.InferenceSession(Path(paths.voice) / f"fp32/{graph}.onnx", options)


def raw_onnxruntime(paths: Paths, _: str) -> tuple[Speak, int]:
    """The same graphs in ONNX Runtime with its default settings, each once for the whole utterance."""
    voice = Voice.open(Path(paths.voice), threads=paths.threads)
    voice.close()
    engine: Any = voice.engine
    engine.sessions.update({name: raw_session(paths, name) for name in ("encoder", "flow", "decoder")})

    def speak(text: str) -> Iterator[int]:
        inputs = {"latents": whole_latents(voice, text)[None], "speaker_id": np.zeros(1, dtype=np.int64)}
        yield engine.run("decoder", inputs)["waveform"].shape[1]

    return speak, voice.sampling_rate


def model_config(paths: Paths) -> dict[str, Any]:
    """The model's ``config.json``."""
    return dict(json.loads((Path(paths.model) / "config.json").read_text()))


def transformers_model(paths: Paths, _: str) -> tuple[Speak, int]:
    """The pipeline of `transformers`; for a model that it refuses, the same forward by our subclass."""
    import torch

    from shared.modeling import load_model
    from shared.text import FrontEnd

    torch.set_num_threads(paths.threads)
    config = model_config(paths)
    if config["model_type"] == PIPELINE_READS:
        import transformers

        pipeline: Any = transformers.pipeline  # its overloads name every task but this one
        speech = pipeline("text-to-speech", model=paths.model, device="cpu")
        return lambda text: iter([np.asarray(speech(text)["audio"]).size]), config["sampling_rate"]
    model, front_end = load_model(Path(paths.model)), FrontEnd.from_folder(Path(paths.model))

    def speak(text: str) -> Iterator[int]:
        with torch.no_grad():
            yield model(torch.tensor([front_end.tokenize(text).ids])).waveform.shape[1]

    return speak, config["sampling_rate"]


def piper(paths: Paths, _: str) -> tuple[Speak, int]:
    """`piper-tts`, whose session is opened anew with the number of threads."""
    import onnxruntime
    from piper import PiperVoice

    voice = PiperVoice.load(str(paths.piper))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = paths.threads
    voice.session = onnxruntime.InferenceSession(paths.piper, options)
    return (
        lambda text: (chunk.audio_float_array.size for chunk in voice.synthesize(text)),
        voice.config.sample_rate,
    )


def sherpa(paths: Paths, _: str) -> tuple[Speak, int]:
    """`sherpa-onnx`, on the graph that ``--format sherpa-onnx`` writes."""
    import sherpa_onnx

    from shared.text import FrontEnd

    folder = Path(str(paths.sherpa))
    vits = sherpa_onnx.OfflineTtsVitsModelConfig(
        model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt")
    )
    model = sherpa_onnx.OfflineTtsModelConfig(vits=vits, num_threads=paths.threads)
    speech = sherpa_onnx.OfflineTts(sherpa_onnx.OfflineTtsConfig(model=model))
    front_end = FrontEnd.from_folder(Path(paths.model))
    phonemes = front_end.spec["kind"] == "piper"

    def speak(text: str) -> Iterator[int]:
        pieces: list[float] = []

        def heard(samples: Any, progress: float) -> int:
            pieces.append(time.perf_counter())
            return 1

        request = sherpa_onnx.GenerationConfig()
        if phonemes:  # it has none of its own for this model
            symbols = [front_end.tokenize(part + ".").symbols for part in text.split(".") if part.strip()]
            request.phoneme_codepoints = [
                [ord(letter) for symbol in row for letter in symbol if letter not in "_^$"] for row in symbols
            ]
        audio = speech.generate("" if phonemes else text, request, heard)
        # It calls back while it works, and a generator cannot be left from within a call.
        speak.first = pieces[0] if pieces else time.perf_counter()  # type: ignore[attr-defined]
        yield len(audio.samples)

    return speak, speech.sample_rate


SYSTEMS: dict[str, Callable[[Paths, str], tuple[Speak, int]]] = {
    "transformers": transformers_model,
    "onnxruntime, raw": raw_onnxruntime,
    "piper-tts": piper,
    "sherpa-onnx": sherpa,
    "ours": ours,
}


def serve(system: str, paths: Paths) -> int:
    """A child: read a text a line, answer with times and the memory's high-water mark so far."""
    kind, _, variant = system.partition(": ")
    started = time.perf_counter()
    speak, rate = SYSTEMS[kind](paths, variant)
    print(json.dumps({"load": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        samples, first = 0, 0.0
        for piece in speak(json.loads(line)):
            first = first or time.perf_counter()
            samples += piece
        end = time.perf_counter()
        first = getattr(speak, "first", first)
        answer = {"seconds": end - start, "first": first - start, "audio": samples / rate}
        print(json.dumps(answer | {"peak": peak_bytes()}), flush=True)
    return 0


def peak_bytes() -> int:
    """This process's high-water mark of memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


# --- The measurement ---------------------------------------------------------------------------------------


class Child:
    """A system in its own process."""

    def __init__(self, system: str, paths: Paths) -> None:
        self.system = system
        command = [sys.executable, "-m", "benchmarks.synthesis", "--child", system, json.dumps(vars(paths))]
        environment = os.environ | {"OMP_NUM_THREADS": str(paths.threads), "HF_HUB_OFFLINE": "1"}
        self.log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the child)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.times: dict[int, list[dict[str, float]]] = {}
        self.peaks: dict[int, float] = {}
        self.load = self._answer().get("load")

    def _answer(self) -> dict[str, float]:
        """The next answer; libraries print lines of their own between them. Empty where the child has died."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        return {}

    def ask(self, text: str) -> dict[str, float]:
        """Speak a text; empty where the child has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(text) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {}
        return self._answer()

    def end(self) -> str:
        """End the process: its last word."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        with self.log:
            self.log.seek(0)
            said = self.log.read().split("\n")
        return next((line for line in reversed(said) if line.strip()), "no word")


def choose_texts(paths: Paths, lengths: Sequence[int]) -> dict[int, str]:
    """Texts that our voice speaks in about so many seconds, whole sentences where more than one is needed."""
    voice = Voice.open(Path(paths.voice))
    texts = {}
    for seconds in lengths:
        words = " ".join(SENTENCES * 30).split()
        frames_a_word = whole_latents(voice, " ".join(words[:40])).shape[1] / 40
        count = max(1, round(seconds * voice.sampling_rate / voice.spec.hop_length / frames_a_word))
        texts[seconds] = " ".join(words[:count]).rstrip(".,") + "."
    voice.close()
    return texts


def prepare(
    model: Path | None, voice: Path | None, piper_file: Path | None, scratch: Path, threads: int
) -> Paths:
    """Export the model for everybody."""
    from services.export.formats.write import write_format
    from shared.errors import VitsError

    if model is None:
        model = random_model(scratch / "mms-size")
    if voice is None:
        voice = export_all(model, scratch / "voice")
    sherpa_folder: Path | None = scratch / "sherpa"
    try:
        write_format("sherpa-onnx", model, scratch / "sherpa")
    except VitsError as error:
        print(f"sherpa-onnx cannot be given this model: {error}", file=sys.stderr)
        sherpa_folder = None
    return Paths(
        str(model),
        str(voice),
        str(piper_file) if piper_file else None,
        str(sherpa_folder) if sherpa_folder else None,
        threads,
    )


def export_all(model: Path, folder: Path) -> Path:
    """A model's voice in every variant that this machine computes, none of them judged.

    The choice of int8 layers is the one that was found on Joe: nothing is searched, so that random weights are
    treated as a trained voice's would be.
    """
    from services.export.build import KNOWN, USUAL
    from services.export.export import VARIANTS, export_voice
    from services.export.progress import Progress
    from services.export.quantization import QUANTISED, quantise
    from services.export.sentences import sentences_for
    from shared.provenance import Provenance

    here = [name for name in USUAL if why_not(KNOWN[name]) is None]
    progress = Progress(lambda line: print(line, file=sys.stderr))
    exact = [name for name in here if name in VARIANTS]
    spec = export_voice(model, folder, provenance=Provenance(), variants=exact, progress=progress)
    sentences = sentences_for("en")
    assert sentences is not None
    made = quantise(
        folder,
        [name for name in here if name in QUANTISED],
        sentences=sentences.calibration,
        cache=folder.parent / "calibration",
        search=False,
        progress=progress,
    )
    spec.model_copy(update={"variants": spec.variants | made.variants}).write(folder)
    return folder


def random_model(folder: Path) -> Path:
    """A model of MMS's size with random weights, which is as loud as speech.

    As they are drawn, the weights make signals some ten times louder than a trained decoder's: half of the samples
    lie at the ends of the hyperbolic tangent, and differences of rounding are ten times what speech knows.
    """
    import torch
    from transformers import VitsConfig

    from shared.modeling import VitsForTraining

    alphabet = "_ abcdefghijklmnopqrstuvwxyz.,'"
    torch.manual_seed(0)
    model = VitsForTraining(VitsConfig(vocab_size=len(alphabet))).train(mode=False)
    levels: list[Any] = []
    hook = model.decoder.conv_post.register_forward_hook(lambda *call: levels.append(call[2].std()))
    with torch.no_grad():
        model(torch.arange(len(alphabet))[None])
        model.decoder.conv_post.weight.mul_(SPEECH_LEVEL / levels[0])
    hook.remove()
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({symbol: n for n, symbol in enumerate(alphabet)}))
    tokenizer = {
        "tokenizer_class": "VitsTokenizer",
        "add_blank": True,
        "language": "eng",
        "normalize": True,
        "pad_token": "_",
        "unk_token": "_",
        "phonemize": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def systems(paths: Paths) -> list[str]:
    """Those that can be measured here; which cannot is printed."""
    if model_config(paths)["model_type"] != PIPELINE_READS:
        print(
            "transformers: its pipeline does not load this model; measured is the same forward by our subclass"
        )
    names = ["transformers", "onnxruntime, raw"]
    for name, module, given in (
        ("piper-tts", "piper", paths.piper),
        ("sherpa-onnx", "sherpa_onnx", paths.sherpa),
    ):
        if importlib.util.find_spec(module) is None:
            print(f"not measured: {name} is not installed")
        elif not given:
            print(f"not measured: {name} cannot speak this model")
        else:
            names.append(name)
    for name, variant in VoiceSpec.read(Path(paths.voice)).variants.items():
        reason = why_not(variant)
        if reason:
            print(f"not measured: {name}: {reason}")
        else:
            names.append(f"ours: {name}")
    return names


def measure(paths: Paths, rounds: int, lengths: Sequence[int]) -> list[str]:
    """Measure every system and print the table; the systems that could be opened."""
    texts = choose_texts(paths, lengths)
    children = []
    for system in systems(paths):
        child = Child(system, paths)
        if child.load is None:
            print(f"not measured: {system} failed: {child.end()}")
        else:
            children.append(child)
    for number in range(rounds + 1):  # the first warms up
        for seconds, text in sorted(texts.items()):
            for child in children:
                answer = child.ask(text)
                if not number:
                    child.peaks[seconds] = answer.get("peak", math.nan)
                elif answer.get("audio"):
                    child.times.setdefault(seconds, []).append(answer)
                time.sleep(0.05)  # worker threads that spin after their work would disturb the next
    print(f"\n{versions()}; {paths.threads} threads, medians of {rounds}\n")
    print(table_head(lengths))
    for child in children:
        row = table_row(
            child.system, child.times, lengths, load=child.load, peaks=child.peaks, why=child.end()
        )
        print(row, flush=True)
    return [child.system for child in children]


def measure_decoders(paths: Paths, rounds: int, opened: Sequence[str]) -> None:
    """Measure one window of the decoder in every variant that could be opened, in turns; print the table."""
    folder = Path(paths.voice)
    spec = VoiceSpec.read(folder)
    window = plan_windows(2 * spec.decoder.window_frames, spec.decoder)[1]
    latents = np.random.default_rng(0).standard_normal((1, spec.latent_channels, window.width), np.float32)
    inputs: dict[str, Any] = {"latents": latents, "speaker_id": np.zeros(1, dtype=np.int64)}
    raw = raw_session(paths, "decoder")
    runs: dict[str, Callable[[], Any]] = {"onnxruntime, raw": lambda: raw.run(None, inputs)}
    engines = {
        f"ours: {name}": open_engine(folder, variant, threads=paths.threads)
        for name, variant in spec.variants.items()
        if f"ours: {name}" in opened
    }
    for name, engine in engines.items():
        runs[name] = functools.partial(engine.run, "decoder", inputs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(CALLS_A_ROUND * rounds + 1):  # the first compiles
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
            time.sleep(0.02)  # as in `measure`
    for engine in engines.values():
        engine.close()
    print()
    for line in decoder_table(times, window.width):
        print(line)


# --- What is printed ---------------------------------------------------------------------------------------


def versions() -> str:
    """The packages that figures depend on."""
    found = []
    for name in ("torch", "transformers", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def table_head(lengths: Sequence[int]) -> str:
    """The first two lines of the table."""
    head = " | ".join(f"{seconds} s: factor | first audio ms | peak MB" for seconds in lengths)
    return f"| system | {head} | load s |\n" + "|---" * (3 * len(lengths) + 2) + "|"


def table_row(
    system: str,
    times: Mapping[int, Sequence[Mapping[str, float]]],
    lengths: Sequence[int],
    *,
    load: float | None,
    peaks: Mapping[int, float],
    why: str,
) -> str:
    """A system's line in the table.

    Args:
        system: Its name.
        times: Of each length of text the answers of its rounds: ``seconds`` of work, ``first`` until the first audio,
            ``audio`` made. The real-time factor is the median of work over audio.
        lengths: Of all texts, in seconds; one without an answer has failed.
        load: Seconds until it could speak.
        peaks: Its memory's high-water mark in bytes after each length; NaN where it did not live to tell.
        why: What to say where it has failed.
    """
    cells = [system if all(times.get(seconds) for seconds in lengths) else f"{system} ({why})"]
    for seconds in lengths:
        if runs := times.get(seconds):
            cells.append(f"{median(run['seconds'] / run['audio'] for run in runs):.3f}")
            cells.append(f"{1000 * median(run['first'] for run in runs):.0f}")
        else:
            cells += ["failed", "–"]
        peak = peaks.get(seconds, math.nan)
        cells.append("–" if math.isnan(peak) else f"{peak / 1e6:.0f}")
    cells.append("–" if load is None else f"{load:.1f}")
    return f"| {' | '.join(cells)} |"


def decoder_table(times: Mapping[str, Sequence[float]], frames: int) -> list[str]:
    """The decoder's table: medians in milliseconds, and how many times faster than the first row.

    Args:
        times: Seconds of each call, by system; what the others are compared with comes first.
        frames: The window's width.
    """
    middle = {name: median(runs) for name, runs in times.items()}
    base = next(iter(middle.values()))
    rows = [f"| {name} | {1000 * seconds:.1f} | {base / seconds:.2f} |" for name, seconds in middle.items()]
    return [f"| decoder, {frames} frames | ms | times the first |", "|---|---|---|", *rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model folder (default: MMS's size, random weights)")
    parser.add_argument("--piper", type=Path, help="the Piper ONNX file that the model was converted from")
    parser.add_argument(
        "--voice", type=Path, help="the model's voice folder (default: exported here, unjudged)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=int, nargs="+", default=SECONDS, help="lengths of the texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="keep what is exported here, and use it again")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        return serve(arguments.child[0], Paths(**json.loads(arguments.child[1])))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        kept = scratch / "paths.json"
        if kept.is_file():
            paths = Paths(**json.loads(kept.read_text()))
        else:
            scratch.mkdir(parents=True, exist_ok=True)
            paths = prepare(arguments.model, arguments.voice, arguments.piper, scratch, arguments.threads)
            kept.write_text(json.dumps(vars(paths)))
        if arguments.rounds:
            opened = measure(paths, arguments.rounds, arguments.seconds)
            measure_decoders(paths, arguments.rounds, opened)
    return 0


if __name__ == "__main__":
    sys.exit(main())
