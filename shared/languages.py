"""Languages' codes as a user types them, and the nearest one to a word that is none."""

from __future__ import annotations

import re
import unicodedata
from difflib import get_close_matches

from shared.errors import UserError

#: ISO 639-1: the names that somebody may give instead of each code, in English and in the language itself.
NAMES: dict[str, str] = {
    "aa": "Afar", "ab": "Abkhazian", "ae": "Avestan", "af": "Afrikaans", "ak": "Akan", "am": "Amharic/amarinya",
    "an": "Aragonese/aragonés", "ar": "Arabic/al-arabiyya", "as": "Assamese", "av": "Avaric", "ay": "Aymara",
    "az": "Azerbaijani/azeri/azərbaycan", "ba": "Bashkir", "be": "Belarusian/belaruskaya",
    "bg": "Bulgarian/balgarski", "bi": "Bislama", "bm": "Bambara", "bn": "Bengali/bangla", "bo": "Tibetan",
    "br": "Breton/brezhoneg", "bs": "Bosnian/bosanski", "ca": "Catalan/català/valencian", "ce": "Chechen",
    "ch": "Chamorro", "co": "Corsican/corsu", "cr": "Cree", "cs": "Czech/čeština/český", "cu": "Church Slavonic",
    "cv": "Chuvash", "cy": "Welsh/cymraeg", "da": "Danish/dansk", "de": "German/deutsch", "dv": "Divehi/maldivian",
    "dz": "Dzongkha", "ee": "Ewe", "el": "Greek/ellinika", "en": "English", "eo": "Esperanto",
    "es": "Spanish/español/castellano/castilian", "et": "Estonian/eesti", "eu": "Basque/euskara",
    "fa": "Persian/farsi", "ff": "Fulah/fula", "fi": "Finnish/suomi", "fj": "Fijian", "fo": "Faroese/føroyskt",
    "fr": "French/français", "fy": "Western Frisian/frysk", "ga": "Irish/gaeilge", "gd": "Scottish Gaelic/gàidhlig",
    "gl": "Galician/galego", "gn": "Guarani", "gu": "Gujarati", "gv": "Manx", "ha": "Hausa", "he": "Hebrew/ivrit",
    "hi": "Hindi", "ho": "Hiri Motu", "hr": "Croatian/hrvatski", "ht": "Haitian Creole/kreyòl",
    "hu": "Hungarian/magyar", "hy": "Armenian/hayeren", "hz": "Herero", "ia": "Interlingua",
    "id": "Indonesian/bahasa indonesia", "ie": "Interlingue", "ig": "Igbo", "ii": "Sichuan Yi", "ik": "Inupiaq",
    "io": "Ido", "is": "Icelandic/íslenska", "it": "Italian/italiano", "iu": "Inuktitut", "ja": "Japanese/nihongo",
    "jv": "Javanese/basa jawa", "ka": "Georgian/kartuli", "kg": "Kongo", "ki": "Kikuyu/gikuyu", "kj": "Kuanyama",
    "kk": "Kazakh/qazaq", "kl": "Greenlandic/kalaallisut", "km": "Khmer", "kn": "Kannada", "ko": "Korean/hangugeo",
    "kr": "Kanuri", "ks": "Kashmiri", "ku": "Kurdish/kurdî", "kv": "Komi", "kw": "Cornish", "ky": "Kyrgyz",
    "la": "Latin", "lb": "Luxembourgish/lëtzebuergesch", "lg": "Ganda/luganda", "li": "Limburgish", "ln": "Lingala",
    "lo": "Lao", "lt": "Lithuanian/lietuvių", "lu": "Luba-Katanga", "lv": "Latvian/latviešu", "mg": "Malagasy",
    "mh": "Marshallese", "mi": "Māori", "mk": "Macedonian/makedonski", "ml": "Malayalam", "mn": "Mongolian",
    "mr": "Marathi", "ms": "Malay/bahasa melayu", "mt": "Maltese/malti", "my": "Burmese/myanmar", "na": "Nauru",
    "nb": "Norwegian Bokmål/bokmål", "nd": "North Ndebele", "ne": "Nepali", "ng": "Ndonga",
    "nl": "Dutch/nederlands/flemish", "nn": "Norwegian Nynorsk/nynorsk", "no": "Norwegian/norsk",
    "nr": "South Ndebele", "nv": "Navajo", "ny": "Chichewa/nyanja", "oc": "Occitan", "oj": "Ojibwa", "om": "Oromo",
    "or": "Odia/oriya", "os": "Ossetian", "pa": "Punjabi/panjabi", "pi": "Pali", "pl": "Polish/polski",
    "ps": "Pashto", "pt": "Portuguese/português", "qu": "Quechua/runasimi", "rm": "Romansh", "rn": "Rundi/kirundi",
    "ro": "Romanian/română", "ru": "Russian/russkiy", "rw": "Kinyarwanda", "sa": "Sanskrit", "sc": "Sardinian",
    "sd": "Sindhi", "se": "Northern Sami", "sg": "Sango", "si": "Sinhala/sinhalese", "sk": "Slovak/slovenčina",
    "sl": "Slovenian/slovene/slovenščina", "sm": "Samoan", "sn": "Shona", "so": "Somali", "sq": "Albanian/shqip",
    "sr": "Serbian/srpski", "ss": "Swati", "st": "Southern Sotho/sesotho", "su": "Sundanese", "sv": "Swedish/svenska",
    "sw": "Swahili/kiswahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai", "ti": "Tigrinya",
    "tk": "Turkmen", "tl": "Tagalog/filipino", "tn": "Tswana/setswana", "to": "Tongan", "tr": "Turkish/türkçe",
    "ts": "Tsonga", "tt": "Tatar", "tw": "Twi", "ty": "Tahitian", "ug": "Uyghur", "uk": "Ukrainian/ukrayinska",
    "ur": "Urdu", "uz": "Uzbek/oʻzbek", "ve": "Venda", "vi": "Vietnamese/tiếng việt", "vo": "Volapük",
    "wa": "Walloon", "wo": "Wolof", "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba", "za": "Zhuang",
    "zh": "Chinese/mandarin/zhongwen", "zu": "Zulu",
    # Of three letters, those whose names are given as often.
    "ast": "Asturian/asturianu", "ceb": "Cebuano", "chr": "Cherokee", "grc": "Ancient Greek", "haw": "Hawaiian",
    "nah": "Nahuatl", "quc": "K'iche'", "yue": "Cantonese", "yua": "Yucatec Maya", "zap": "Zapotec",
}  # fmt: skip

#: Codes that ISO 639-1 has given up, and what Whisper (``jw``) and espeak-ng (``py``, ``piqd``) call a language.
_ALSO = {"in", "iw", "ji", "mo", "sh", "jw", "py", "piqd"}


def language_code(text: str, *, name: str = "--language") -> str:
    """The value of ``--language``, as it stands but for spaces around it: a type for argparse.

    A code is one of ISO 639-1 or any three letters (ISO 639-3, of which MMS has over a thousand), and may be followed
    by region, script or dialect: ``es``, ``es-MX``, ``es_419``, ``spa``, ``uig-script_arabic``, ``en-gb-x-rp``.

    Args:
        text: What was typed.
        name: Of the option or field, for the message.

    Raises:
        UserError: It is none; the message names the nearest.
    """
    text = text.strip()
    language = re.split(r"[-_]", text.lower(), maxsplit=1)[0]
    if language in NAMES or language in _ALSO or re.fullmatch(r"[a-z]{3}", language):
        return text
    near = " or ".join(f"{code!r} ({NAMES[code].partition('/')[0]})" for code in _nearest(language))
    hint = f", did you mean {near}?" if near else "."
    raise UserError(
        f"{name} {text}: no language has the code {language!r}{hint}\n"
        "Codes are those of ISO 639, with a region where that matters: es, es-MX, spa"
    )


def _nearest(word: str) -> list[str]:
    """The codes of the languages that are called a word, or else of the two that are called most like it."""
    codes = {_plain(name): code for code, names in NAMES.items() for name in names.split("/")}
    word = _plain(word)
    found = [word] if word in codes else get_close_matches(word, codes, n=2, cutoff=0.75)
    return list(dict.fromkeys(codes[name] for name in found))


def _plain(name: str) -> str:
    """A name in lower case, without accents."""
    decomposed = unicodedata.normalize("NFD", name.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))
