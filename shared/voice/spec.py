"""What ``voice.json`` says: everything that is needed to speak, but the weights."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import ModelError, NotFoundError, RequestError, nearest

#: The file in a voice folder.
VOICE_FILE = "voice.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelReference(_Strict):
    """The registered model that the voice was exported from."""

    name: str
    version: str


class Defaults(_Strict):
    """What a request that does not say is spoken with. The names are those of `transformers.VitsConfig`."""

    noise_scale: Annotated[float, Field(ge=0)]
    """How much the sound varies: the standard deviation of the prior's noise."""
    noise_scale_duration: Annotated[float, Field(ge=0)]
    """How much the rhythm varies."""
    speaking_rate: Annotated[float, Field(gt=0)]
    """Larger is faster. A request's own speaking rate multiplies this one."""


class DecoderPlan(_Strict):
    """How an utterance is cut into windows for the decoder; see `shared.voice.windows`."""

    halo_frames: Annotated[int, Field(ge=0)]
    """Frames of context a window needs on each side: the decoder's one-sided receptive field."""
    first_window_frames: Annotated[int, Field(ge=1)]
    """Frames that the first window yields: short, so that the first audio comes early."""
    window_frames: Annotated[int, Field(ge=1)]
    """Frames that each later window yields: long, so that little is spent on halos."""


Precision = Literal["fp32", "bf16", "fp16", "int8"]


class Variant(_Strict):
    """The graphs of one precision, as paths inside the voice folder, and what computes them.

    The encoder is fp32 in every variant: a rounding difference in it would change durations.
    """

    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    device: Literal["cpu", "gpu"] = "cpu"
    precision: Precision = "fp32"
    """Of flow and decoder."""
    rest: Literal["fp32", "bf16"] = "fp32"
    """Of an ``int8`` variant: the precision of all that is not quantised."""
    encoder: str
    flow: str
    decoder: str
    opset: Annotated[int, Field(ge=1)]
    """ONNX operator set of the graphs."""
    requires: list[str] = []
    """CPU features, as Linux names them in ``/proc/cpuinfo``. One of them suffices; any CPU does where empty."""
    gate: Literal["reference", "passed", "ungated"] = "ungated"
    """``reference``: the samples are PyTorch's, within the tolerance of the parity check. ``passed``: they
    differ, and the quality gate found them as good. ``ungated``: nobody has judged them."""

    @property
    def arithmetic(self) -> Literal["fp32", "bf16", "fp16"]:
        """The precision that an engine computes in wherever the graph itself is not quantised."""
        return self.rest if self.precision == "int8" else self.precision

    @model_validator(mode="after")
    def _stay_inside(self) -> Self:
        for path in (self.encoder, self.flow, self.decoder):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path!r} leads out of the voice's folder")
        return self


class VoiceSpec(_Strict):
    """``voice.json``."""

    schema_version: Literal[1] = 1
    model: ModelReference | None
    language: str
    """BCP 47 or ISO 639-3 tag of what the voice speaks; ``und`` where nobody said."""
    sampling_rate: Annotated[int, Field(ge=1)]
    """Hz."""
    hop_length: Annotated[int, Field(ge=1)]
    """Samples per frame."""
    latent_channels: Annotated[int, Field(ge=1)]
    num_speakers: Annotated[int, Field(ge=1)]
    speakers: dict[str, Annotated[int, Field(ge=0)]]
    """Speaker ids by name; empty where speakers have no names."""
    defaults: Defaults
    front_end: dict[str, Any]
    """The text front end, whole: see `shared.text.FrontEnd.from_spec`."""
    decoder: DecoderPlan
    token_buckets: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Lengths, ascending, that token sequences are padded to; past the last, to multiples of it."""
    frame_multiple: Annotated[int, Field(ge=1)]
    """The flow's frames are padded to a multiple of this."""
    flow_halo_frames: Annotated[int, Field(ge=0)] | None = None
    """How far the flow looks to either side; not known of voices that were exported before it was asked for."""
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    recommended: list[str] = []
    """Variants from the fastest to the slowest, as far as export knows; see `shared.voice.selection`."""
    licence: str
    sources: list[str]
    consent: str | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.token_buckets != sorted(set(self.token_buckets)):
            raise ValueError("token_buckets must ascend, each once")
        strangers = [name for name, number in self.speakers.items() if number >= self.num_speakers]
        if strangers:
            raise ValueError(f"speakers {strangers} have ids past num_speakers {self.num_speakers}")
        missing = [name for name in self.recommended if name not in self.variants]
        if missing:
            raise ValueError(f"recommended names {missing}, which the voice has not")
        return self

    @classmethod
    def read(cls, folder: Path) -> VoiceSpec:
        """Read a voice folder's ``voice.json``.

        Raises:
            ModelError: It is not there, or not of the published form; the message lists every fault.
        """
        path = folder / VOICE_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f"{folder} is not a voice folder: {VOICE_FILE} cannot be read ({error.strerror}). "
                "'vits export' makes voice folders from models."
            ) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = "\n".join(
                f"  - {'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
                for fault in error.errors()
            )
            raise ModelError(f"{path} is not a valid voice; export it again:\n{faults}") from error

    def write(self, folder: Path) -> None:
        """Write ``voice.json`` into a folder."""
        (folder / VOICE_FILE).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The text of ``voice.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def variant(self, name: str) -> Variant:
        """The graphs of a precision.

        Raises:
            NotFoundError: The voice was not exported with it.
        """
        if name not in self.variants:
            raise NotFoundError(
                f"The voice has no variant {name!r}{nearest(name, list(self.variants)) or '.'} "
                f"It has {', '.join(sorted(self.variants))}"
            )
        return self.variants[name]

    def speaker_id(self, speaker: str | int | None) -> int:
        """The id of a speaker given by name or number; the first speaker where none is given.

        Raises:
            RequestError: The voice has no such speaker.
        """
        if speaker is None:
            return 0
        if isinstance(speaker, str) and speaker in self.speakers:
            return self.speakers[speaker]
        number = int(speaker) if isinstance(speaker, int) or (speaker.isascii() and speaker.isdigit()) else -1
        if not 0 <= number < self.num_speakers and self.num_speakers == 1:
            name = "".join(f", {name!r}" for name in self.speakers)
            raise RequestError(
                f"The voice has no speaker {speaker!r}; it has one speaker only{name}: leave 'speaker' out",
                param="speaker",
            )
        if not 0 <= number < self.num_speakers:
            known = ", ".join(sorted(self.speakers)) or f"0 to {self.num_speakers - 1}"
            hint = nearest(speaker, list(self.speakers)) if isinstance(speaker, str) else ""
            raise RequestError(
                f"The voice has no speaker {speaker!r}{hint or '.'} It has {known}", param="speaker"
            )
        return number

    def token_bucket(self, tokens: int) -> int:
        """The length that a sequence of tokens is padded to; it depends on nothing else."""
        for bucket in self.token_buckets:
            if tokens <= bucket:
                return bucket
        return round_up(tokens, self.token_buckets[-1])

    def frame_bucket(self, frames: int) -> int:
        """The length that a sequence of frames is padded to for the flow."""
        return round_up(frames, self.frame_multiple)


def round_up(count: int, multiple: int) -> int:
    """The least multiple that holds a count."""
    return -(-count // multiple) * multiple


def schema_text() -> str:
    """The JSON Schema (2020-12) of ``voice.json``, as it is committed in ``shared/schemas/voice.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **VoiceSpec.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
