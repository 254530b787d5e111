"""What is written: a model with its text front end, its speakers and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.export.export import read_speakers
from shared.errors import ModelError
from shared.modeling import VitsForTraining, load_model
from shared.provenance import Provenance
from shared.text import FrontEnd
from shared.text.specs import CharacterSpec, PiperSpec, Spec, parse_spec


@dataclass(frozen=True)
class Subject:
    """A model folder, read."""

    folder: Path
    network: VitsForTraining
    """Exporting folds its weight norm."""
    front_end: FrontEnd
    speakers: dict[str, int]
    """Ids by name; empty where the speakers have no names, or there is one."""
    provenance: Provenance

    @classmethod
    def read(cls, folder: Path) -> Subject:
        """Read a model folder.

        Raises:
            ModelError: It is not a model, or has no tokenizer, or another model's.
            ConfigError: Its tokenizer's files say something that cannot be.
        """
        network = load_model(folder)
        front_end = FrontEnd.from_folder(folder)
        if front_end.vocab_size > network.config.vocab_size:
            raise ModelError(
                f"{folder}: the text front end makes token ids up to {front_end.vocab_size - 1}, and the "
                f"model knows {network.config.vocab_size} tokens. The tokenizer is another model's: copy its own."
            )
        return cls(folder, network, front_end, read_speakers(folder), Provenance.read(folder))

    @property
    def num_speakers(self) -> int:
        """How many speakers the model has: 1 or more."""
        return max(1, int(self.network.config.num_speakers))

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return int(self.network.config.sampling_rate)

    @property
    def noise_scale(self) -> float:
        """The model's own noise scale."""
        return float(self.network.config.noise_scale)

    @property
    def noise_scale_duration(self) -> float:
        """The model's own noise scale of durations."""
        return float(self.network.config.noise_scale_duration)

    @property
    def length_scale(self) -> float:
        """The reciprocal of the model's own speaking rate: what others call its length scale."""
        return 1.0 / float(self.network.config.speaking_rate)

    @property
    def spec(self) -> CharacterSpec | PiperSpec:
        """The front end's specification."""
        spec: Spec = parse_spec(self.front_end.spec, where=str(self.folder))
        return spec

    @property
    def language(self) -> str:
        """A language tag, or ``und`` where the front end names none."""
        spec = self.spec
        return spec.espeak_voice if isinstance(spec, PiperSpec) else spec.language or "und"


def provenance_lines(provenance: Provenance) -> str:
    """Licence, sources and consent as lines of Markdown."""
    lines = [f"- Licence: {provenance.licence}", *(f"- Source: {source}" for source in provenance.sources)]
    if provenance.consent:
        lines.append(f"- Consent of the speaker: {provenance.consent}")
    return "\n".join(lines)
