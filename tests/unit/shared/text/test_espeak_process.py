"""espeak-ng in a process of its own: the same answers, and a text that kills it kills nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError, EngineError, TextError
from shared.text import FrontEnd, espeak, espeak_process
from shared.text.espeak_process import EspeakProcess

#: The crash of a C library, wherever there is a certain word; what it really died of is guarded against.
MORTAL = """
import os, signal
from shared.text import espeak
from shared.text.espeak_process import main
read = espeak.IN_PROCESS["clauses"]
def clauses(text, voice):
    if "deadly" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(text, voice)
espeak.IN_PROCESS["clauses"] = clauses
main()
"""


@pytest.fixture(scope="module")
def process() -> Iterator[EspeakProcess]:
    process = EspeakProcess()
    yield process
    process.close()


@pytest.fixture
def isolated(process: EspeakProcess, monkeypatch: pytest.MonkeyPatch) -> EspeakProcess:
    monkeypatch.setattr(espeak, "_call", process)
    return process


def test_answers_and_errors_are_those_of_the_library(
    process: EspeakProcess, monkeypatch: pytest.MonkeyPatch, english_phonemes: FrontEnd
) -> None:
    texts = ["Hello, world!", "one two three. " * 40, "ñandú – 😀", "A.B.C." * 30]
    here = [english_phonemes.tokenize(text) for text in texts]
    like = espeak.phonemes_like_transformers("Hello, world!")
    monkeypatch.setattr(espeak, "_call", process)
    assert [english_phonemes.tokenize(text) for text in texts] == here
    assert espeak.phonemes_like_transformers("Hello, world!") == like
    with pytest.raises(ConfigError, match="no voice 'xx-none'"):
        espeak.phonemes("hola", "xx-none")
    assert espeak.phonemes("hola", "es-419") == "ˈola"


def test_a_text_that_kills_it_is_refused_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak_process, "CHILD", MORTAL)
    mortal = EspeakProcess()
    monkeypatch.setattr(espeak, "_call", mortal)
    with pytest.raises(TextError, match="espeak-ng, which reads it, fails on it"):
        espeak.phonemes("a deadly word", "en-us")
    assert espeak.phonemes("hola", "es-419") == "ˈola"
    mortal.close()


def test_a_child_that_was_killed_is_replaced(isolated: EspeakProcess) -> None:
    assert espeak.phonemes("hola", "es-419") == "ˈola"
    assert isolated._child
    isolated._child.kill()
    assert espeak.phonemes("hola", "es-419") == "ˈola"


#: Answers late that it is ready, the first time, and then every text with the text itself.
TARDY = """
import time
from pathlib import Path
from typing import Any
from shared.text import espeak
from shared.text.espeak_process import main
espeak.IN_PROCESS = {"clauses": lambda text, voice: [(text, text, True)]}
begun = Path(PLACE)
if not begun.exists():
    begun.touch()
    time.sleep(60)
main()
"""


def test_a_child_that_starts_too_late_owes_nobody_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its first answer would be taken for that to the next text, and so on for ever."""
    place = tmp_path / "begun"
    monkeypatch.setattr(espeak_process, "CHILD", TARDY.replace("PLACE", repr(str(place))))
    monkeypatch.setattr(espeak_process, "START_SECONDS", 0)
    tardy = EspeakProcess()
    with pytest.raises(EngineError, match="could not be started"):
        tardy("clauses", "one", "en-us")
    assert tardy._child is None
    place.touch()
    monkeypatch.setattr(espeak_process, "START_SECONDS", 60)
    assert tardy("clauses", "two", "en-us") == [("two", "two", True)]
    tardy.close()


@pytest.mark.parametrize(
    "child", ["import os, sys; os.write(1, bytes([9, 0, 0, 0, 1])); sys.exit()", "1 / 0"]
)
def test_a_child_that_dies_at_its_start_is_said(child: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak_process, "CHILD", child)
    dying = EspeakProcess()
    with pytest.raises(EngineError, match="could not be started"):
        dying("clauses", "one", "en-us")
    assert dying._child is None


#: Computes over one text for ever and waits over another one; neither may take a tenth of a second of processor time.
SLOW = """
import time
from shared.text import espeak, espeak_process
def clauses(text, voice):
    while text == "circles":
        pass
    time.sleep(float(text))
    return [(text, text, True)]
espeak.IN_PROCESS = {"clauses": clauses}
espeak_process.PROCESSOR_SECONDS = 0.1
espeak_process.main()
"""


def test_a_slow_answer_is_waited_for_as_long_as_little_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have the processor, a child that waits for its turn does what the others do."""
    monkeypatch.setattr(espeak_process, "CHILD", SLOW)
    starved = EspeakProcess()
    assert starved("clauses", "1.2", "en-us") == [("1.2", "1.2", True)]
    starved.close()


@pytest.mark.parametrize(("text", "patience"), [("circles", 300.0), ("60", 0.2)], ids=["computes", "idles"])
def test_a_text_that_is_never_answered_is_tried_once(
    text: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other texts wait as long as it does."""
    monkeypatch.setattr(espeak_process, "CHILD", SLOW)
    monkeypatch.setattr(espeak_process, "PATIENCE_SECONDS", patience)
    asked: list[object] = []
    ask = espeak_process._ask

    def counted(child: Any, question: Any, *, patience: float) -> Any:
        asked.append(question)
        return ask(child, question, patience=patience)

    monkeypatch.setattr(espeak_process, "_ask", counted)
    slow = EspeakProcess()
    with pytest.raises(TextError, match="fails on it"):
        slow("clauses", text, "en-us")
    assert asked == [("", ()), ("clauses", (text, "en-us"))]
    assert slow._child is None
