"""From texts to segments, words and pauses: laws for any text, and examples."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import RequestError, TextError
from shared.text import FrontEnd, alignment, espeak
from shared.text.script import MAX_CHARACTERS, Script, plan_script
from shared.text.segmentation import CLAUSE_PAUSE, FIRST_TOKENS, PARAGRAPH_PAUSE, SENTENCE_PAUSE
from shared.text.units import MARKS
from tests.unit.shared.text.conftest import letters

NASTY = [
    "",
    " \n\t ",
    "a" * 5000,
    "a " * 3000,
    "漢" * 3000,
    "😀🏳️‍🌈👩‍👩‍👧",
    "שלום עולם",
    "مرحبا بالعالم ١٢٣",
    "\x00\x01\x1b[31mrojo\x7f",
    "\ud800 hola \udfff",
    "<speak>&lol;</speak>",
    "9" * 4000,
    "1,1.1,1.1" * 200,
    "I" * 500 + " Felipe " + "IIIIIVX" * 20,
    "A.B.C." * 300,
    "-" * 1000 + "5",
    "a@" * 500 + "b.es",
    "http://" + "a." * 500 + "com",
    "1/2/3/4/5-6-7:8:9" * 50,
    "€$£%°½²ª" * 100,
    "e\u0301" * 300,
    "a" + "\u0301" * 2000,
    "\u202e\u200b\ufeffhola\u200d",
    "ﷺﬁ①ⅣＡ㎞",
    "0\x1b\x1b\x1b\x1b hola",
    "ñ." * 300,
    "A-A.-AA." * 200,
    "'''\"\"\"((( ... ,,, ;;; hola !!! ???",
]


def known_words(script: Script) -> list[str]:
    return [word.text for segment in script.segments for word in segment.words]


def check_laws(script: Script, text: str, front_end: FrontEnd, max_tokens: int) -> None:
    previous = (0, 0)
    for segment in script.segments:
        assert len(segment.tokens.ids) == len(segment.tokens.symbols) <= max_tokens
        assert segment.tokens.ids, "only a break has no tokens, and a plain text has no breaks"
        assert segment.tokens == front_end.tokenize(segment.text)
        last = 0
        for word in segment.words:
            assert last <= word.first_token < word.last_token <= len(segment.tokens.ids)
            last = word.last_token
            assert word.text == text[word.start : word.end] != ""
            assert previous[0] <= word.start
            assert previous[1] <= word.end
            previous = (word.start, word.end)
    assert script.segments[-1].pause_seconds == 0 or not script.segments
    assert all(symbol.encode() and symbol not in MARKS for symbol in script.unknown)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("kind", ["mms", "spanish_phonemes"])
def test_nasty_texts_are_spoken_or_refused_with_a_message(
    text: str, kind: str, request: pytest.FixtureRequest
) -> None:
    front_end: FrontEnd = request.getfixturevalue(kind)
    try:
        script = plan_script(text, front_end, language="es")
    except TextError:
        return
    check_laws(script, text, front_end, 200)
    assert plan_script(text, front_end, language="es") == script


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=200),
    st.text(st.sampled_from("aeñz AB.,;?!¡¿'\"-0123456789/:€$%ºª\n()½ΣİIVX"), max_size=300),
    st.lists(
        st.sampled_from(["hola", "21", "casas.", "Dr.", "5 €", "¿Qué?", "10:30", "EE. UU.", "X", "\n\n", "1.º"]),
        max_size=60,
    ).map(" ".join),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(["es", "en-GB", "spa", "fr", "xx"]), st.sampled_from([40, 75, 200]))
@example("Σ.", "es", 40)
def test_laws_for_letters(text: str, language: str, max_tokens: int) -> None:
    front_end = letters()
    try:
        script = plan_script(text, front_end, language=language, max_tokens=max_tokens)
    except TextError:
        return
    check_laws(script, text, front_end, max_tokens)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, max_tokens=st.sampled_from([60, 200]))
def test_laws_for_phonemes(spanish_phonemes: FrontEnd, text: str, max_tokens: int) -> None:
    try:
        script = plan_script(text, spanish_phonemes, language="es", max_tokens=max_tokens)
    except TextError:
        return
    check_laws(script, text, spanish_phonemes, max_tokens)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("<>/&;speak breaktime='1s' rate\"!DOCTYPE[]x \x00\ud800é"), max_size=80))
def test_any_markup_is_spoken_or_refused_with_a_message(inside: str) -> None:
    for text in (inside, f"<speak>{inside}</speak>", f"<speak>Hola <break {inside}/></speak>"):
        try:
            plan_script(text, letters(), language="es", ssml=True)
        except (TextError, RequestError):
            continue


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("abcdeé .,;?!\n"), min_size=1, max_size=400))
def test_every_letter_is_in_a_word(text: str) -> None:
    try:
        script = plan_script(text, letters(), language="xx", max_tokens=60)
    except TextError:
        return
    covered = {i for s in script.segments for w in s.words for i in range(w.start, w.end)}
    assert covered >= {i for i, character in enumerate(text) if character.isalpha()}
    assert script.unknown == ()


def test_a_number_is_one_word_with_all_its_tokens(mms: FrontEnd) -> None:
    (segment,) = plan_script("Tengo 21 años", mms, language="es").segments
    assert segment.text == "Tengo veintiún años"
    spoken = ["".join(segment.tokens.symbols[w.first_token : w.last_token]) for w in segment.words]
    assert [word.text for word in segment.words] == ["Tengo", "21", "años"]
    assert [re.sub(" ", "", word) for word in spoken] == ["tengo", "veintiún", "años"]


def test_words_own_the_blanks_around_them(mms: FrontEnd) -> None:
    (segment,) = plan_script("ab cd", mms, language="es").segments
    assert len(segment.tokens.ids) == 11
    assert [(w.first_token, w.last_token) for w in segment.words] == [(0, 5), (6, 11)]


def test_words_of_phonemes_where_espeak_joins_them(english_phonemes: FrontEnd) -> None:
    (segment,) = plan_script("Out of the house, I am ready", english_phonemes, language="en").segments
    spoken = {
        word.text: "".join(segment.tokens.symbols[word.first_token : word.last_token]).replace("_", "")
        for word in segment.words
    }
    assert spoken["house"] == "hˈaʊs"
    assert spoken["ready"] == "ɹˈɛdi"
    assert spoken["of"].endswith("v")
    assert spoken["the"].endswith("ə")
    assert [*spoken] == ["Out", "of", "the", "house", "I", "am", "ready"]


def test_numbers_in_phonemes_are_one_word(spanish_phonemes: FrontEnd) -> None:
    (segment,) = plan_script("Son 1234 libros, y 5 €.", spanish_phonemes, language="es").segments
    assert [word.text for word in segment.words] == ["Son", "1234", "libros", "y", "5 €"]
    amount = segment.words[-1]
    symbols = "".join(segment.tokens.symbols[amount.first_token : amount.last_token]).replace("_", "")
    assert symbols == "sˈinko ˈeʊɾos"


def test_sentences_and_their_pauses(mms: FrontEnd) -> None:
    text = 'Hola, señor. "¿Qué tal?" Bien… gracias. Son las 3.5 en EE. UU. ¡Adiós!\n\nFin. El Dr. Ruiz.'
    script = plan_script(text, mms, language="es")
    assert [(segment.text, segment.pause_seconds) for segment in script.segments] == [
        ("Hola, señor.", SENTENCE_PAUSE),
        ('"¿Qué tal?"', SENTENCE_PAUSE),
        ("Bien… gracias.", SENTENCE_PAUSE),
        ("Son las tres punto cinco en Estados Unidos.", SENTENCE_PAUSE),
        ("¡Adiós!", PARAGRAPH_PAUSE),
        ("Fin.", SENTENCE_PAUSE),
        ("El doctor Ruiz.", 0.0),
    ]


def test_a_voice_without_a_comma_pauses_at_clauses(mms: FrontEnd, spanish_phonemes: FrontEnd) -> None:
    text = "El perro de la vecina ladra mucho, pero el gato de la casa duerme."
    assert [s.pause_seconds for s in plan_script(text, mms, language="es").segments] == [CLAUSE_PAUSE, 0.0]
    assert len(plan_script(text, spanish_phonemes, language="es").segments) == 1


@pytest.mark.parametrize("words", [30, 100, 400])
def test_unpunctuated_text_is_cut_evenly_between_words_but_for_a_short_beginning(
    mms: FrontEnd, words: int
) -> None:
    script = plan_script("palabra " * words, mms, language="es")
    first, *lengths = [len(segment.tokens.ids) for segment in script.segments]
    assert abs(first - FIRST_TOKENS) < 20
    assert max(lengths) <= 200
    assert min(lengths) > 80
    assert known_words(script) == ["palabra"] * words


def test_only_the_first_segment_of_a_text_is_short(mms: FrontEnd) -> None:
    """And a sentence that fits a segment is never cut for it."""
    whole = plan_script("palabra " * 12 + ". " + "palabra " * 40, mms, language="es").segments
    assert len(whole[0].tokens.ids) > FIRST_TOKENS + 20
    assert min(len(segment.tokens.ids) for segment in whole[1:]) > FIRST_TOKENS + 20


@pytest.mark.parametrize(
    "text", ["one of the two, or neither. And " * 4, "one of the two or neither and " * 40]
)
def test_words_are_looked_for_only_where_they_are_timed(
    text: str, english_phonemes: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find words among phonemes takes longer than to read them, and somebody waits for the first sound."""
    timed = plan_script(text, english_phonemes, language="en")
    monkeypatch.setattr(alignment, "match_groups", lambda *_: pytest.fail("words were looked for"))
    plain = plan_script(text, english_phonemes, language="en", timed=False)
    assert plain == replace(timed, segments=tuple(replace(one, words=()) for one in timed.segments))
    assert all(segment.words for segment in timed.segments)


@pytest.mark.parametrize(("text", "most"), [("One, or two? " * 20, 1), ("one of the two " * 60, 4)])
def test_few_questions_are_asked_of_espeak(
    text: str, most: int, english_phonemes: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would wake the process that it is in, which takes as long as a sentence."""
    call, asked = espeak._call, []

    def counted(*question: Any) -> Any:
        asked.append(question)
        return call(*question)

    monkeypatch.setattr(espeak, "_call", counted)
    script = plan_script(text, english_phonemes, language="en", timed=False)
    assert len(script.segments) > most * 2
    assert len(asked) <= most
    alone = "".join(segment.text for segment in script.segments[:1])
    assert script.segments[0].tokens == english_phonemes.tokenize(alone)


def test_a_long_sentence_is_rather_cut_at_a_comma(spanish_phonemes: FrontEnd) -> None:
    text = "uno dos tres cuatro cinco seis siete ocho nueve diez, once doce trece catorce quince dieciséis"
    first, second = plan_script(text, spanish_phonemes, language="es", max_tokens=160).segments
    assert first.text.endswith("diez,")
    assert first.pause_seconds == CLAUSE_PAUSE
    assert second.text.startswith("once")


def test_a_text_does_not_begin_with_a_word_alone(spanish_phonemes: FrontEnd) -> None:
    """Voices speak very short texts badly, so a mark right at the beginning of a long sentence is no place to cut."""
    text = "Mira, " + "la casa de la colina no tiene puertas ni ventanas y los perros ladran " * 6
    first, *_ = plan_script(text, spanish_phonemes, language="es").segments
    assert first.text.startswith("Mira, la casa")
    assert abs(len(first.tokens.ids) - FIRST_TOKENS) < 20


def test_a_word_longer_than_a_segment_is_cut(mms: FrontEnd) -> None:
    script = plan_script("a" * 250, mms, language="es")
    assert sum(word.end - word.start for segment in script.segments for word in segment.words) == 250


@pytest.mark.parametrize(
    ("alphabet", "text", "spoken", "unknown"),
    [
        (" abcdefghijklmnopqrstuvwxyz'", "Él está allí", "el esta alli", ()),
        (" abcdefghijklmnopqrstuvwxyz'", "año", "ano", ()),
        (" abcdefghijklmnopqrstuvwxyz'", "it’s ﬁne ＯＫ", "it's fine ok", ()),
        (" abcdefghijklmnopqrstuvwxyz'", "Straße Ærø Łódź", "strasse aero lodz", ()),
        (" abcdefghijklmnopqrstuvwxyz'", "e\u0301l", "el", ()),
        (" abcdefghijklmnopqrstuvwxyzé", "e\u0301l", "él", ()),
        (" abcdefghijklmnopqrstuvwxyz'", "hola 漢 мир ok", "hola   ok", ("漢", "м", "и", "р")),
        (" abcdefghijklmnopqrstuvwxyz'", "hola 😀\x07 \ud83d", "hola", ("U+0007", "U+D83D", "😀")),
        (" abc", "«a», (b)… c!", "a b c", ()),
        (" abc\u0301", "á", "a\u0301", ()),
    ],
)
def test_stand_ins_and_what_has_none(alphabet: str, text: str, spoken: str, unknown: tuple[str, ...]) -> None:
    front_end = letters(alphabet, add_blank=False, pad_token="<pad>")  # noqa: S106
    script = plan_script(text, front_end, language="xx")
    assert "".join(script.segments[0].tokens.symbols) == spoken
    assert script.unknown == unknown


def test_spans_are_of_the_source_text() -> None:
    text = "ﬁn\u00adal\u200b e\u0301l 21"
    script = plan_script(text, letters(), language="es")
    assert known_words(script) == ["ﬁn\u00adal", "e\u0301l", "21"]


def test_nothing_speakable_is_refused(mms: FrontEnd, english_phonemes: FrontEnd) -> None:
    for text in ("", "  ", "...", "漢字", "\ud800"):
        with pytest.raises(TextError):
            plan_script(text, mms, language="es")
    with pytest.raises(TextError, match="no letters or digits"):
        plan_script("?!", english_phonemes, language="en")
    with pytest.raises(TextError, match="at most"):
        plan_script("a" * (MAX_CHARACTERS + 1), mms, language="es")


def test_an_unknown_sentence_leaves_the_others(mms: FrontEnd) -> None:
    script = plan_script("Hola. 漢字。 Adiós.", mms, language="es")
    assert known_words(script) == ["Hola", "Adiós"]
    assert script.unknown == ("漢", "字")
    assert script.segments[0].pause_seconds == SENTENCE_PAUSE


def test_romanised_voices_speak_other_scripts() -> None:
    front_end = letters(" abcdefghijklmnopqrstuvwxyz'", is_uroman=True, language="rus")
    script = plan_script("Привет, мир!", front_end, language="ru")
    assert known_words(script) == ["Привет", "мир"]
    assert all(first.last_token <= second.first_token for first, second in pairwise(script.segments[0].words))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("marks", ['"', ". ", '" ', "¿", ")."])
def test_marks_without_words_are_read_in_time(mms: FrontEnd, marks: str) -> None:
    """Each was compared with all before it, which took hours for as many as these."""
    script = plan_script(marks * (200_000 // len(marks)) + " hola", mms, language="es")
    assert known_words(script) == ["hola"]


@pytest.mark.parametrize("speaking_rate", [0.25, 0.4, 0.5, 0.65, 0.7, 1.0, 4.0])
@pytest.mark.parametrize("prosody", [1.0, 0.5, 2.0])
def test_a_slow_segment_lasts_no_longer_than_a_long_one(
    mms: FrontEnd, speaking_rate: float, prosody: float
) -> None:
    """An id lasts the longer the slower it is spoken, so a segment has the fewer."""
    rate = speaking_rate * prosody
    text = f'<speak><prosody rate="{prosody}">{"palabra corta " * 40}</prosody></speak>'
    if not 0.25 <= rate <= 4:
        with pytest.raises(RequestError, match="in all") as refused:
            plan_script(text, mms, language="es", ssml=True, speaking_rate=speaking_rate)
        assert refused.value.param == "speaking_rate"
        return
    segments = plan_script(text, mms, language="es", ssml=True, speaking_rate=speaking_rate).segments
    assert " ".join(segment.text for segment in segments).split() == ["palabra", "corta"] * 40
    most = max(len(segment.tokens.ids) for segment in segments)
    assert most <= 200
    assert most / rate <= 300
    if rate >= 0.7:
        plain = plan_script("palabra corta " * 40, mms, language="es").segments
        assert [segment.tokens for segment in segments] == [segment.tokens for segment in plain]


def test_a_rate_below_all_limits_cuts_no_finer_than_the_slowest(mms: FrontEnd) -> None:
    text = "palabra corta " * 40
    slowest, slower = (plan_script(text, mms, language="es", speaking_rate=rate) for rate in (0.25, 0.01))
    assert slower == slowest
