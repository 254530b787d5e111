"""The options of ``vits tune`` that are no keys of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError


class Options(BaseModel):
    """What ``vits tune`` is told beside the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trials: int = Field(20, gt=0, description="search: trials of the whole study, those ended early included")
    minutes: float | None = Field(
        None, gt=0, description="search: begin no further trial after so many minutes"
    )
    objective: Literal["mel_distance", "mel", "kl", "duration"] = Field(
        "mel_distance",
        description="search: the held-out measure to make small. The other measures are not offered: each trial's own "
        "discriminator, or its own loss weights, would be the judge",
    )
    space: Path | None = Field(None, description="search: a JSON file with other keys and values to try")
    storage: str | None = Field(
        None,
        description="search: a database, such as postgresql+psycopg2://host/name (default: a file of SQLite)",
    )
    study: str | None = Field(
        None, min_length=1, description="search: the study's name in it (default: the run's)"
    )
    prune: bool = Field(True, description="search: end trials early that lag behind the median of the others")
    lowest: float = Field(1e-7, gt=0, description="lr: the first learning rate")
    highest: float = Field(1e-2, gt=0, description="lr: the last one")
    ramp: int = Field(100, ge=20, description="lr: steps from the one to the other")
    memory: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)?\s*([gGmM][iI]?[bB])$",
        description="batch: what may be used, such as 8gb (default: what is there)",
    )

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` as a number."""
        if self.memory is None:
            return None
        unit = {"g": 2**30, "m": 2**20}["g" if "g" in self.memory.lower() else "m"]
        return round(float(self.memory.lower().rstrip("gmib ")) * unit)


def take_options(overrides: dict[str, Any]) -> Options:
    """Take the options of ``vits tune`` out of the command line's keys; the rest is the configuration's.

    Raises:
        ConfigError: One of them cannot be used; it lists all that cannot.
    """
    own = {key: overrides.pop(key) for key in list(overrides) if key in Options.model_fields}
    try:
        options = Options.model_validate(own)
    except ValidationError as error:
        problems = [
            f"--{problem['loc'][0]}: {problem['input']!r} will not do: {problem['msg'].lower()}"
            for problem in error.errors()
        ]
        raise ConfigError("vits tune cannot be used like this:", problems) from None
    if options.lowest >= options.highest:
        raise ConfigError(
            "vits tune cannot be used like this:",
            [f"--lowest {options.lowest:g} is not below --highest {options.highest:g}"],
        )
    return options
