"""sherpa-onnx: ``model.onnx`` with the metadata that it reads, and ``tokens.txt``.

A character model (MMS) becomes what sherpa-onnx calls a ``characters`` front end: it takes text. A Piper base
becomes a ``piper`` model: since version 2 sherpa-onnx takes its phonemes from the caller
(``GenerationConfig.phoneme_codepoints``); version 1 made them itself from a folder of espeak-ng data.

sherpa-onnx knows nothing of a model's own scales: what it is not told is 0.667, 0.8 and 1.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from services.export.formats.ends import PIPER_TAIL, VITS_TAIL, piper_head, vits_head
from services.export.formats.subject import Subject, provenance_lines
from services.export.formats.whole import Ends, build_whole
from shared.text.specs import PiperSpec

MODEL, TOKENS, README = "model.onnx", "tokens.txt", "README.md"

#: What Piper's layout sets around and between the phonemes; sherpa-onnx looks them up by name.
MARKERS = ("^", "_", "$")

_README = """\
# {name} for sherpa-onnx

```python
{prelude}import sherpa_onnx

model = sherpa_onnx.OfflineTtsVitsModelConfig(
    model="model.onnx",
    tokens="tokens.txt",
    noise_scale={noise_scale},  # the model's own; sherpa-onnx does not read them from the file
    noise_scale_w={noise_scale_duration},
    length_scale={length_scale},
)
config = sherpa_onnx.OfflineTtsConfig(model=sherpa_onnx.OfflineTtsModelConfig(vits=model))
tts = sherpa_onnx.OfflineTts(config)
request = sherpa_onnx.GenerationConfig()
request.sid = 0  # the speaker, of {num_speakers}{speakers}
request.silence_scale = 1.0  # pauses as the model makes them
{speak}
print(len(audio.samples) / audio.sample_rate, "seconds")
```

{provenance}
"""

_PHONEMES = """\
import unicodedata

from phonemizer.backend import EspeakBackend
from phonemizer.backend.espeak.wrapper import EspeakWrapper
import espeakng_loader
"""

_SPEAK_TEXT = 'audio = tts.generate("hola", request)'

_SPEAK_PHONEMES = """\
EspeakWrapper.set_library(espeakng_loader.get_library_path())
EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
espeak = EspeakBackend("{espeak_voice}", preserve_punctuation=True, with_stress=True)
phonemes = unicodedata.normalize("NFD", espeak.phonemize(["hola"], strip=True)[0])
request.phoneme_codepoints = [[ord(phoneme) for phoneme in phonemes]]  # one list for each sentence
audio = tts.generate("", request)"""


def problems(subject: Subject) -> list[str]:
    """Why sherpa-onnx could not speak a model as we do; nothing if it can."""
    spec = subject.spec
    if isinstance(spec, PiperSpec):
        return _piper_problems(spec)
    found = []
    if spec.is_uroman:
        found.append("its texts are romanised by uroman, which sherpa-onnx does not have")
    if spec.phonemize:
        found.append(
            "its characters are phonemes of espeak-ng, and sherpa-onnx would take the text's letters"
        )
    capitals = "".join(c for c in spec.vocab if len(c) == 1 and c.isascii() and c.isupper())
    if capitals and not spec.lower_case:
        found.append(f"its vocabulary has the capitals {capitals}, and sherpa-onnx lower-cases every text")
    gaps = [c for c in spec.vocab if c.isspace() and c.isascii() and c != " "]
    if gaps:
        found.append(f"its vocabulary has {', '.join(map(repr, gaps))}, which tokens.txt cannot hold")
    return found


def _piper_problems(spec: PiperSpec) -> list[str]:
    found = []
    several = [symbol for symbol, ids in spec.vocab.items() if len(symbol) == 1 and len(ids) != 1]
    if several:
        found.append(f"its phonemes {' '.join(several)} have several ids each, and tokens.txt holds one")
    return found


def tokens_of(subject: Subject) -> dict[str, int]:
    """The lines of ``tokens.txt``: symbols of one character and their ids.

    Longer symbols are left out: our own front ends look up single characters too. sherpa-onnx lower-cases ASCII
    alone, so other capitals get their small letter's id, as do spaces of other kinds the space's.
    """
    spec = subject.spec
    if isinstance(spec, PiperSpec):
        return {s: ids[0] for s, ids in spec.vocab.items() if len(s) == 1 and (s == " " or not s.isspace())}
    tokens = {symbol: token_id for symbol, token_id in spec.vocab.items() if len(symbol) == 1}
    if spec.normalize or spec.lower_case:
        for symbol, token_id in list(tokens.items()):
            capital = symbol.upper()
            if not capital.isascii() and len(capital) == 1 and capital.lower() == symbol:
                tokens.setdefault(capital, token_id)
    if " " in tokens:
        for point in range(0x80, 0x3001):
            if chr(point).isspace():
                tokens.setdefault(chr(point), tokens[" "])
    if spec.language == "ron" and "ţ" in tokens:
        tokens["ț"] = tokens["ţ"]
    return tokens


def metadata_of(subject: Subject) -> dict[str, object]:
    """What sherpa-onnx reads from the file."""
    spec = subject.spec
    common: dict[str, object] = {
        "model_type": "vits",
        "sample_rate": subject.sampling_rate,
        "n_speakers": subject.num_speakers,
        "language": subject.language,
        "license": subject.provenance.licence,
    }
    if isinstance(spec, PiperSpec):
        return {**common, "comment": "piper", "version": 1, "voice": spec.espeak_voice, "has_espeak": 1}
    return {
        **common,
        "comment": "mms",
        "frontend": "characters",
        "add_blank": int(spec.add_blank),
        "blank_id": 0,
        "use_eos_bos": 0,
    }


def ends_of(subject: Subject) -> Ends:
    """The graph's inputs and output, which sherpa-onnx expects by the model's kind."""
    several = subject.num_speakers > 1
    if isinstance(subject.spec, PiperSpec):
        return Ends(piper_head(several_speakers=several), PIPER_TAIL, {})
    return Ends(vits_head(several_speakers=several), VITS_TAIL, {})


def write(subject: Subject, folder: Path, name: str) -> Path:
    """Write the files into a folder.

    Returns:
        The ONNX file.
    """
    onnx.save(build_whole(subject.network, ends_of(subject), metadata_of(subject)), folder / MODEL)
    lines = [f"{symbol} {token_id}\n" for symbol, token_id in tokens_of(subject).items()]
    (folder / TOKENS).write_text("".join(lines), encoding="utf-8")
    (folder / README).write_text(_readme(subject, name), encoding="utf-8")
    return folder / MODEL


def _readme(subject: Subject, name: str) -> str:
    """How to speak with these very files."""
    spec = subject.spec
    piper = isinstance(spec, PiperSpec)
    named = ", ".join(f"{speaker} {number}" for speaker, number in subject.speakers.items())
    return _README.format(
        name=name,
        prelude=_PHONEMES if piper else "",
        speak=_SPEAK_PHONEMES.format(espeak_voice=subject.language) if piper else _SPEAK_TEXT,
        noise_scale=subject.noise_scale,
        noise_scale_duration=subject.noise_scale_duration,
        length_scale=subject.length_scale,
        num_speakers=subject.num_speakers,
        speakers=f": {named}" if named else "",
        provenance=provenance_lines(subject.provenance),
    )
