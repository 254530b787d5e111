"""transformers.js: ``onnx/model.onnx``, ``config.json`` and a fast tokenizer, under the names that Optimum gives them.

The pipeline of transformers.js feeds ``input_ids`` and ``attention_mask`` and nothing else, so the scales are the
model's own, in the file. It has no ``VitsTokenizer`` in code: ``tokenizer.json`` says as a chain of replacements
what ours does.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import onnx

from services.export.formats.subject import Subject, provenance_lines
from services.export.formats.whole import Ends, build_whole
from shared.text.specs import CharacterSpec, PiperSpec

MODEL = "onnx/model.onnx"

HEAD = """
head (int64[B, T] input_ids, int64[B, T] attention_mask) => () {
}
"""

TAIL = """
tail (float[B, S] silent_after_end, float[B, D, F] latents) => (float[B, S] waveform, float[B, D, F] spectrogram) {
    waveform = Identity (silent_after_end)
    spectrogram = Identity (latents)
}
"""

_README = """\
---
library_name: transformers.js
pipeline_tag: text-to-speech
---
# {name} for transformers.js

```js
import {{ env, pipeline }} from '@huggingface/transformers';

env.localModelPath = '..';  // where this folder lies; leave both lines out once it is on a model hub
env.allowRemoteModels = false;
const synthesizer = await pipeline('text-to-speech', '{name}');
const speech = await synthesizer('hola');
await speech.save('hola.wav');
```

{provenance}
"""


def problems(subject: Subject) -> list[str]:
    """Why transformers.js could not speak a model as we do; nothing if it can."""
    spec = subject.spec
    found = []
    if subject.num_speakers > 1:
        found.append(
            f"it has {subject.num_speakers} speakers, and the pipeline of transformers.js cannot be told which one "
            "to speak as; sherpa-onnx can"
        )
    if isinstance(spec, PiperSpec):
        found.append(
            "it speaks from phonemes of espeak-ng, which transformers.js does not have; sherpa-onnx and piper do"
        )
        return found
    if spec.is_uroman:
        found.append("its texts are romanised by uroman, which transformers.js does not have")
    if spec.phonemize:
        found.append("its texts become phonemes of espeak-ng, which transformers.js does not have")
    return found


def ends_of(subject: Subject) -> Ends:
    """The graph's inputs and outputs."""
    scales = {
        "noise_scale": subject.noise_scale,
        "length_scale": subject.length_scale,
        "noise_scale_duration": subject.noise_scale_duration,
    }
    return Ends(HEAD, TAIL, scales)


def write(subject: Subject, folder: Path, name: str) -> Path:
    """Write the files into a folder.

    Returns:
        The ONNX file.
    """
    spec = subject.spec
    assert isinstance(spec, CharacterSpec)  # noqa: S101 (others are among the problems)
    (folder / MODEL).parent.mkdir()
    onnx.save(build_whole(subject.network, ends_of(subject), {}), folder / MODEL)
    _write_json(folder / "config.json", _config(subject))
    _write_json(folder / "tokenizer.json", tokenizer(spec))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(spec))
    _write_json(folder / "vocab.json", spec.vocab)
    (folder / "README.md").write_text(
        _README.format(name=name, provenance=provenance_lines(subject.provenance)),
        encoding="utf-8",
    )
    return folder / MODEL


def _config(subject: Subject) -> dict[str, Any]:
    """The model's configuration, of the one type that transformers.js knows.

    A decoder of another kind is of no matter to it: the graph holds it. Browsers would look for a quantised
    file unless they are told that there is none.
    """
    return {
        **subject.network.config.to_dict(),
        "model_type": "vits",
        "architectures": ["VitsModel"],
        "transformers.js_config": {"dtype": "fp32"},
    }


def _tokenizer_config(spec: CharacterSpec) -> dict[str, Any]:
    """Special tokens; in a batch, short rows are filled with any token that there is, and masked."""
    pad = spec.pad_token if spec.pad_token in spec.vocab else next(iter(spec.vocab))
    return {
        "tokenizer_class": "VitsTokenizer",
        "add_blank": spec.add_blank,
        "is_uroman": False,
        "language": spec.language,
        "normalize": spec.normalize,
        "pad_token": pad,
        "phonemize": False,
        "unk_token": spec.unk_token,
    }


def tokenizer(spec: CharacterSpec) -> dict[str, Any]:
    """The contents of ``tokenizer.json``: `shared.text.characters` as a chain of replacements.

    A character without an id is left out, unless the vocabulary has a token for the unknown and the text is
    not normalised. Blanks are set before each character and behind the last, and not around the special
    tokens, as ``transformers`` does it.
    """
    characters = [symbol for symbol in spec.vocab if len(symbol) == 1]
    chain: list[dict[str, Any]] = []
    if spec.lower_case:
        chain.append({"type": "Lowercase"})
    spaces = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace() and c not in spec.vocab)
    if " " in spec.vocab and spaces:
        chain.append(_replace_any(spaces, " "))
    if spec.normalize:
        chain += _small_letters(characters)
    if spec.language == "ron":
        chain.append(_replace_any("ț", "ţ"))
    if spec.normalize or spec.unk_token not in spec.vocab:
        chain.append({"type": "Replace", "pattern": {"Regex": f"[^{_class(characters)}]"}, "content": ""})
    if spec.normalize:
        chain.append({"type": "Strip", "strip_left": True, "strip_right": True})
    blank = next((symbol for symbol, token_id in spec.vocab.items() if token_id == 0), "")
    if spec.add_blank:
        chain.append({"type": "Replace", "pattern": {"Regex": _blank_places(spec)}, "content": blank})
    whole_blank = f"{re.escape(blank)}|" if len(blank) > 1 else ""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": chain} if chain else None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"{whole_blank}[\\s\\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {"vocab": spec.vocab},
    }


def _blank_places(spec: CharacterSpec) -> str:
    """A pattern of the places between characters where a blank belongs.

    Before each ordinary character, and behind one that a special token or the text's end follows.
    """
    special = {token for token in (spec.pad_token, spec.unk_token) if len(token) == 1}
    if not special:
        return r"(?=[\s\S])|(?<=[\s\S])(?![\s\S])"
    letters = _class(special)
    return rf"(?=[^{letters}])|(?<=[^{letters}])(?![^{letters}])"


def _small_letters(characters: list[str]) -> list[dict[str, Any]]:
    """A replacement for each capital that the vocabulary lacks and whose small letter it has.

    Not one step for all: ours looks at each character alone, while JavaScript's lower case of a whole text
    depends on what stands around a letter (the Greek sigma), and would take known capitals too.
    """
    known = set(characters)
    return [
        _replace_any(capital, capital.lower())
        for capital in map(chr, range(sys.maxunicode + 1))
        if capital not in known and capital.lower() != capital and known & set(capital.lower())
    ]


def _replace_any(characters: str, content: str) -> dict[str, Any]:
    """A step that replaces each of some characters."""
    pattern = {"String": characters} if len(characters) == 1 else {"Regex": f"[{_class(characters)}]"}
    return {"type": "Replace", "pattern": pattern, "content": content}


def _class(characters: Any) -> str:
    """Characters as the inside of a regular expression's class, by code point where they might mean something."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\u{{{ord(c):X}}}" for c in characters)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
