"""Advice by amount, by dialect, by what is wrong."""

from __future__ import annotations

import pytest

from services.training.data.advice import advise, amount_of
from services.training.data.inspection import Inspection, Measured, Suspect
from services.training.data.recordings import Columns, Recording


def recordings(
    count: int, seconds: float = 6.0, text: str = "hola", speaker: str | None = None
) -> list[Measured]:
    return [
        Measured(
            Recording(f"{speaker}{n}", text, speaker, row=str(n)),
            "train",
            seconds,
            0,
            0,
            -20,
            0.5,
            False,
            4,
            str(n),
        )
        for n in range(count)
    ]


def advice(measured: list[Measured], language: str = "es-MX", *, gpu: bool = False, faults: int = 0) -> str:
    suspects = tuple(Suspect(str(n), str(n), "is clipped", "clipped") for n in range(faults))
    return "\n".join(advise(Inspection("my set", tuple(measured), suspects, ()), language=language, gpu=gpu))


@pytest.mark.parametrize(
    ("count", "seconds", "name"),
    [
        (79, 60, "too little"), (80, 11, "too little"), (80, 12, "the minimum"), (499, 60, "the minimum"),
        (500, 8, "recommended"), (2000, 8, "recommended"), (2000, 9, "optimal"),
    ],
)  # fmt: skip
def test_both_number_and_length_decide(count: int, seconds: float, name: str) -> None:
    assert amount_of(recordings(count, seconds)).name == name


def test_too_little_is_told_to_record_and_not_to_train() -> None:
    told = advice(recordings(40))
    assert "40 recordings or 11 minutes more" in told
    assert "next: vits data record" in told
    assert "vits train" not in told
    assert "vits data record more-recordings --language en\n" in advice(recordings(40), "EN-gb") + "\n"
    for language in ("", "fr-FR"):  # there are no sentences of ours to read out
        told = advice(recordings(40), language)
        assert "write sentences to read out into a text file, sentences.txt, one a line" in told
        assert told.index("write sentences") < told.index(
            "vits data record more-recordings --prompts sentences.txt"
        )


def test_the_command_fits_language_machine_and_speakers() -> None:
    plain = advice(recordings(200))
    assert (
        "next: vits train --config configs/piper.json --dataset_name 'my set' --espeak_voice es-419" in plain
    )
    assert "--espeak_voice es\n" in advice(recordings(200), "es-ES") + "\n"
    gpu = advice(recordings(600, 9), gpu=True)
    assert "--config configs/spa.json --dataset_name 'my set' --num_train_epochs 200" in gpu
    assert "eng.json" in advice(recordings(200), "en-GB", gpu=True)
    two = recordings(100, 10, speaker="ana") + recordings(100, 10, speaker="luis")
    assert "--config configs/multi-speaker.json" in advice(two)
    assert "ana: 100 recordings, 17 minutes" in advice(two)


def test_one_dialect() -> None:
    assert "say which Spanish" in advice(recordings(200), "es")
    assert "say what is spoken" in advice(recordings(200), "")
    assert "Mexican Spanish" in advice(recordings(200))
    mixed = recordings(190) + recordings(10, text="¿Vosotros venís?") + recordings(10, text="vos sabés")
    assert "two dialects" in advice(mixed, "es-ES")
    assert "not Mexican" in advice(recordings(100) + recordings(100, text="¿Qué queréis?"))
    assert "vosotros" not in advice(recordings(200) + recordings(1, text="«vosotros»"))


@pytest.mark.parametrize(
    "text", ["Tengo dieciséis.", "Veintiséis o treintaiséis jerséis.", "cuarentaiséis samuráis y bonsáis"]
)
def test_numbers_and_nouns_that_end_like_verbs_are_no_dialect(text: str) -> None:
    """Every Mexican set in which somebody counts was told that it is Castilian."""
    assert "vosotros" not in advice(recordings(100, text=text))


@pytest.mark.parametrize("text", ["¡Que lo piséis!", "¿Aviséis o no?", "Pensáis mal.", "Que os caséis."])
def test_verbs_that_end_like_numbers_are(text: str) -> None:
    assert "the texts say vosotros" in advice(recordings(100, text=text))


def test_faults_come_first() -> None:
    told = advice(recordings(200), faults=3)
    assert told.index("vits data clean 'my set'") < told.index("next: vits train")
    assert "clipped 3" in told


def test_a_language_without_a_configuration_is_told_how_to_make_a_base() -> None:
    told = advice(recordings(200), "fr-FR", gpu=True)
    assert "vits convert mms-discriminator --language_code CODE --output models/mms" in told
    assert "--model_name_or_path models/mms" in told
    assert "may not be used commercially" in told
    assert "--espeak_voice fr" in advice(recordings(200), "fr-FR")


@pytest.mark.parametrize(("language", "code"), [("ko-KR", "kor"), ("gu", "guj"), ("ta", "tam")])
def test_a_language_with_a_base_on_the_hub_is_given_that_and_no_configuration_of_others_recordings(
    language: str, code: str
) -> None:
    """Those name columns and speakers of their datasets, which one's own recordings do not have."""
    told = advice(recordings(200), language, gpu=True)
    base = f"--config configs/spa.json --model_name_or_path ylacombe/mms-tts-{code}-train --dataset_name 'my set'"
    assert base in told
    assert "vits convert" not in told


def test_columns_and_configuration_that_were_named_are_in_the_commands() -> None:
    measured = tuple(recordings(100, 10, speaker="ana") + recordings(100, 10, speaker="luis"))
    told = advise(
        Inspection("set", measured, (Suspect("0", "0", "is clipped", "clipped"),), ()),
        language="es-MX",
        gpu=False,
        columns=Columns("sound", "phrase", "who"),
        config_name="mexican",
    )
    read = "--config-name mexican --audio-column sound --text-column phrase --speaker-column who"
    assert f"clean it first (clipped 1): vits data clean set {read}" in told
    read = (
        "--dataset_config_name mexican --audio_column_name sound --text_column_name phrase "
        "--speaker_id_column_name who"
    )
    assert f"--dataset_name set {read} " in told[-1]
