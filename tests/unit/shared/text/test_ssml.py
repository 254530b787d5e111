"""SSML: what is supported, what is refused and how, and that attacks get nowhere."""

from __future__ import annotations

import pytest

from shared.errors import RequestError
from shared.text import FrontEnd
from shared.text.script import Script, plan_script
from tests.unit.shared.text.conftest import letters


def plan(text: str, front_end: FrontEnd | None = None, language: str = "es") -> Script:
    return plan_script(text, front_end or letters(), language=language, ssml=True)


def test_breaks_are_silence_of_the_length_asked_for() -> None:
    script = plan(
        '<speak><break time="1s"/>Hola <break time="500ms"/>mundo<break strength="strong"/></speak>'
    )
    assert [(s.text, s.pause_seconds) for s in script.segments] == [("", 1.0), ("Hola", 0.5), ("mundo", 0.75)]
    assert script.segments[0].tokens.ids == ()


def test_sentences_and_paragraphs() -> None:
    script = plan("<speak><p><s>Hola mundo</s><s>Adiós</s></p><p>Fin</p></speak>")
    assert [segment.text for segment in script.segments] == ["Hola mundo", "Adiós", "Fin"]
    assert all(segment.pause_seconds > 0 for segment in script.segments[:-1])


def test_rates_multiply_and_end_with_their_element() -> None:
    script = plan(
        '<speak>uno <prosody rate="slow">dos <prosody rate="200%">tres</prosody> cuatro</prosody> cinco</speak>'
    )
    assert [(s.text, s.speaking_rate) for s in script.segments] == [
        ("uno", 1.0), ("dos", 0.75), ("tres", 1.5), ("cuatro", 0.75), ("cinco", 1.0),
    ]  # fmt: skip


def test_readings() -> None:
    text = (
        '<speak>La <sub alias="Organización Mundial">OMS</sub> dio '
        '<say-as interpret-as="digits">123</say-as> y <say-as interpret-as="characters">AB</say-as> a 5 &amp; 6</speak>'
    )
    (segment,) = plan(text).segments
    assert segment.text == "La Organización Mundial dio uno dos tres y a be a cinco y seis"
    assert [word.text for word in segment.words] == [
        "La", "OMS", "dio", "123", "y", "AB", "a", "5", "&amp;", "6",
    ]  # fmt: skip
    assert all(text[word.start : word.end] == word.text for word in segment.words)


def test_spans_count_characters_of_the_source_not_bytes() -> None:
    text = "<speak>ñandú <s>él</s>漢字 <![CDATA[allí]]></speak>"
    for segment in plan(text).segments:
        for word in segment.words:
            assert word.text in ("ñandú", "él", "allí")


def test_phonemes_and_languages_in_a_voice_of_phonemes(english_phonemes: FrontEnd) -> None:
    text = (
        '<speak>A <phoneme alphabet="ipa" ph="təˈmɑːtəʊ">tomato</phoneme>, '
        '<lang xml:lang="es">hola amigo</lang>.</speak>'
    )
    (segment,) = plan(text, english_phonemes, "en").segments
    spoken = "".join(segment.tokens.symbols).replace("_", "")
    assert "təˈmɑːtəʊ," in spoken
    assert "ˈola amˈiɣo" in spoken
    word = next(word for word in segment.words if word.text == "tomato")
    assert "".join(segment.tokens.symbols[word.first_token : word.last_token]).replace("_", "") == "təˈmɑːtəʊ"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hola", "cannot be read"),
        ("<speak>hola", "cannot be read"),
        ("<speak>a & b</speak>", "&amp;"),
        ("<speak>\n<audio src='x'/></speak>", "line 2: <audio> is not supported"),
        ("<speak><brek/></speak>", "did you mean 'break'"),
        ("<p>hola</p>", "begins with <speak>"),
        ("<speak><speak>a</speak></speak>", "inside another"),
        ("<speak><break time='5'/>a</speak>", "write seconds"),
        ("<speak><break time='1e3s'/>a</speak>", "write seconds"),
        ("<speak><break time='11s'/>a</speak>", "too much silence"),
        ("<speak>" + "<break time='10s'/>" * 7 + "a</speak>", "too much silence"),
        ("<speak><break strength='huge'/>a</speak>", "strength"),
        ("<speak><prosody pitch='high'>a</prosody></speak>", "no attribute 'pitch'"),
        ("<speak><prosody>a</prosody></speak>", "needs the attribute 'rate'"),
        ("<speak><prosody rate='9'>a</prosody></speak>", "0.25 to 4"),
        ("<speak><prosody rate='nan'>a</prosody></speak>", "rate='nan'"),
        ("<speak><prosody rate='3'><prosody rate='3'>a</prosody></prosody></speak>", "9 times"),
        ("<speak><say-as interpret-as='dance'>a</say-as></speak>", "it knows cardinal"),
        ("<speak><say-as interpret-as='cardinal'>a</say-as></speak>", "cannot read 'a'"),
        ("<speak><sub alias=' '>a</sub></speak>", "empty alias"),
        ("<speak><sub alias='b'></sub></speak>", "<sub> is empty"),
        ("<speak><sub alias='b'><s>a</s></sub></speak>", "may not be inside <sub>"),
        ("<speak><phoneme ph='a'>a</phoneme></speak>", "use <sub>"),
        ("<speak><lang xml:lang='fr'>a</lang></speak>", "speaks only 'es'"),
        ("<speak><lang xml:lang='../x'>a</lang></speak>", "write a code"),
        ("<?xml version='1.0'?><?php ?><speak>a</speak>", "processing instruction"),
        ("<!DOCTYPE speak><speak>a</speak>", "document type"),
        ('<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><speak>&x;</speak>', "document type"),
        ('<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><speak>&b;</speak>', "document type"),
        ("<speak>&lol;</speak>", "cannot be read"),
        ("<speak>" + "<p>" * 20 + "</p>" * 20 + "</speak>", "elements deep"),
        ("<speak>" + "<s/>" * 2001 + "</speak>", "more than 2,000"),
        ("<speak>\x00</speak>", "cannot be read"),
        ("<speak>&#xD800;</speak>", "cannot be read"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match="SSML") as caught:
        plan(text)
    assert message in str(caught.value)
    assert caught.value.param == "input"


def test_languages_that_espeak_lacks_and_alphabets(english_phonemes: FrontEnd) -> None:
    with pytest.raises(RequestError, match="espeak-ng does not know"):
        plan("<speak><lang xml:lang='qqq'>a</lang></speak>", english_phonemes, "en")
    with pytest.raises(RequestError, match="only ipa"):
        plan("<speak><phoneme alphabet='x-sampa' ph='a'>a</phoneme></speak>", english_phonemes, "en")
