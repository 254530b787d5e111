"""What the pods are asked for: when requests come, and what their texts are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import TextError, UserError
from shared.text import FrontEnd
from shared.text.script import Script, plan_script

#: Texts of which each request draws one.
POOL = 200
#: The longest text that a server takes.
MAX_CHARACTERS = 4096

SENTENCES = {
    "es": (
        "Hola, ¿cómo estás?",
        "El próximo tren con destino a Sevilla sale a las nueve de la mañana.",
        "Gracias por llamar.",
        "Si desea hablar con un agente, espere un momento, y le atenderemos en cuanto sea posible.",
        "Mañana lloverá en la costa, pero en el interior brillará el sol hasta bien entrada la tarde.",
        "No lo sé todavía.",
        "La biblioteca abre de lunes a viernes, y cierra los días de fiesta.",
        "Abrió la carta, la leyó dos veces y la dejó otra vez sobre la mesa.",
    ),
    "en": (
        "Hello, how are you?",
        "The next train to the coast leaves at nine in the morning from the last platform.",
        "Thank you for calling.",
        "If you would like to speak to somebody, please stay on the line, and we will be with you soon.",
        "Tomorrow it will rain along the shore, but the sun will shine in the hills until the evening.",
        "Nobody knows yet.",
        "The library is open from Monday to Friday, and closed when there is a holiday.",
        "He opened the letter, read it twice, and put it back on the table.",
    ),
}

Lengths = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Distribution:
    """Lengths of texts, or the texts themselves.

    Attributes:
        said: As the user gave it.
        lengths: Draws lengths in characters.
        texts: Real texts, which are drawn as they are; none where lengths are.
    """

    said: str
    lengths: Lengths | None = None
    texts: tuple[str, ...] = ()


def parse_distribution(said: str) -> Distribution:
    """Read ``fixed:120``, ``uniform:20-400``, ``lognormal:120,0.6`` (median, sigma) or ``file:texts.txt``.

    Raises:
        UserError: It is none of these.
    """
    kind, _, rest = said.partition(":")
    try:
        match kind:
            case "fixed":
                length = _length(rest)
                return Distribution(said, lambda generator, count: np.full(count, length))
            case "uniform":
                low, high = map(_length, rest.split("-"))
                if low > high:
                    raise ValueError
                return Distribution(said, lambda generator, count: generator.uniform(low, high, count))
            case "lognormal":
                median, sigma = rest.split(",")
                mean, width = math.log(_length(median)), float(sigma)
                if not 0 <= width <= 3:
                    raise ValueError
                return Distribution(said, lambda generator, count: generator.lognormal(mean, width, count))
            case "file":
                return _from_file(said, Path(rest))
    except ValueError:
        pass
    raise UserError(
        f"--text-length-distribution is {said!r}; give fixed:120, uniform:20-400, lognormal:120,0.6 (median and "
        f"sigma), in characters up to {MAX_CHARACTERS}, or file:texts.txt with one text a line"
    )


def _length(text: str) -> float:
    value = float(text)
    if not 1 <= value <= MAX_CHARACTERS:
        raise ValueError
    return value


def _from_file(said: str, path: Path) -> Distribution:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--text-length-distribution names {path}, which cannot be read ({error}). Give a UTF-8 file with "
            "one text a line"
        ) from error
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UserError(f"--text-length-distribution names {path}, which holds no text")
    return Distribution(said, texts=texts)


def draw_texts(distribution: Distribution, language: str, seed: int, count: int = POOL) -> list[str]:
    """So many texts of a distribution, as the text front end gets them."""
    generator = np.random.default_rng(seed)
    if distribution.lengths is None:
        return [
            distribution.texts[index] for index in generator.integers(len(distribution.texts), size=count)
        ]
    sentences = SENTENCES.get(language[:2].lower(), SENTENCES["en"])
    # Evenly over the quantiles, so that a small pool has the mean and the tail of the whole.
    lengths = np.sort(distribution.lengths(generator, count * 50)).reshape(count, 50).mean(axis=1)
    return [_text(sentences, round(min(max(length, 1), MAX_CHARACTERS)), generator) for length in lengths]


def _text(sentences: tuple[str, ...], length: int, generator: np.random.Generator) -> str:
    text = ""
    while len(text) < length:
        text += (" " if text else "") + sentences[generator.integers(len(sentences))]
    if len(text) == length:
        return text
    # At a space, so that no word is cut, where that is near enough.
    cut = text.rfind(" ", max(1, length - 8), length + 1)
    return text[: cut if cut > 0 else length].strip() or text[:length]


def plan_texts(texts: list[str], front_end: FrontEnd, language: str) -> list[tuple[str, Script]]:
    """Cut texts into segments as a server does; what the voice cannot speak is left out.

    Raises:
        UserError: The voice can speak none of them, or needs phonemes that cannot be made here.
    """
    scripts = {text: _script(text, front_end, language) for text in dict.fromkeys(texts)}
    planned = [(text, script) for text in texts if (script := scripts[text])]
    if not planned:
        raise UserError(
            "The voice can speak none of the texts: its language has no example sentences here. Give texts of your "
            "own: --text-length-distribution file:texts.txt"
        )
    return planned


def _script(text: str, front_end: FrontEnd, language: str) -> Script | None:
    try:
        return plan_script(text, front_end, language=language)
    except TextError:
        return None


Shape = Literal["constant", "ramp", "daily"]

#: How long each shape is simulated, in seconds, where nobody says.
DURATIONS: dict[Shape, float] = {"constant": 600.0, "ramp": 1800.0, "daily": 86400.0}
#: The share of the peak that a night, or the beginning of a ramp, has.
TROUGH = 0.1


@dataclass(frozen=True)
class Load:
    """Requests a second over time.

    Attributes:
        shape: ``constant``; ``ramp``, up from a tenth in two thirds of the time, then level; ``daily``, a day's
            wave between a tenth at night and the peak.
        peak: Requests a second at most.
        seconds: How long.
    """

    shape: Shape
    peak: float
    seconds: float

    def rate(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Requests a second at each time."""
        share = times / self.seconds
        match self.shape:
            case "constant":
                level = np.ones_like(times)
            case "ramp":
                level = np.minimum(1.0, TROUGH + (1 - TROUGH) * share * 1.5)
            case "daily":
                level = TROUGH + (1 - TROUGH) * (1 - np.cos(2 * np.pi * share)) / 2
        return self.peak * level

    def arrivals(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """When requests come: a Poisson process of that rate, by thinning (Lewis and Shedler 1979)."""
        count = generator.poisson(self.peak * self.seconds)
        times = np.sort(generator.uniform(0, self.seconds, count))
        return times[generator.uniform(size=count) * self.peak < self.rate(times)]
