"""Spanish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shared.text.normalization.language import Currency, Language, Noun, Number

_BELOW_THIRTY = [
    "cero",
    "uno",
    "dos",
    "tres",
    "cuatro",
    "cinco",
    "seis",
    "siete",
    "ocho",
    "nueve",
    "diez",
    "once",
    "doce",
    "trece",
    "catorce",
    "quince",
    "dieciséis",
    "diecisiete",
    "dieciocho",
    "diecinueve",
    "veinte",
    "veintiuno",
    "veintidós",
    "veintitrés",
    "veinticuatro",
    "veinticinco",
    "veintiséis",
    "veintisiete",
    "veintiocho",
    "veintinueve",
]
_TENS = ["", "", "", *["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]]
_HUNDREDS = [
    "",
    *["ciento", "doscientos", "trescientos", "cuatrocientos", "quinientos", "seiscientos", "setecientos"],
]
_HUNDREDS += ["ochocientos", "novecientos"]
_ORDINAL_ONES = [
    "",
    *[
        "primero",
        "segundo",
        "tercero",
        "cuarto",
        "quinto",
        "sexto",
        "séptimo",
        "octavo",
        "noveno",
        "décimo",
        "undécimo",
        "duodécimo",
    ],
]
_ORDINAL_TENS = [
    "",
    "decimo",
    *["vigésimo", "trigésimo", "cuadragésimo", "quincuagésimo", "sexagésimo", "septuagésimo"],
]
_ORDINAL_TENS += ["octogésimo", "nonagésimo"]
_ORDINAL_HUNDREDS = [
    "",
    *[
        "centésimo",
        "ducentésimo",
        "tricentésimo",
        "cuadringentésimo",
        "quingentésimo",
        "sexcentésimo",
        "septingentésimo",
    ],
]
_ORDINAL_HUNDREDS += ["octingentésimo", "noningentésimo"]
_DENOMINATORS = {
    2: "medio",
    3: "tercio",
    4: "cuarto",
    5: "quinto",
    6: "sexto",
    8: "octavo",
    10: "décimo",
    100: "centésimo",
}

#: Plurals in -as that are masculine, and plurals with other endings that are feminine.
_MASCULINE = frozenset(
    [
        "días",
        "mapas",
        "problemas",
        "sistemas",
        "programas",
        "temas",
        "idiomas",
        "planetas",
        "climas",
        "poemas",
        "dilemas",
        "gramas",
        "kilogramas",
        "milígramas",
        "telegramas",
        "cometas",
        "tranvías",
        "artistas",
        "periodistas",
        "turistas",
        "futbolistas",
        "ciclistas",
        "guardias",
        "policías",
        "atletas",
        "poetas",
        "papas",
        "diagramas",
        "esquemas",
        "síntomas",
        "dramas",
        "enigmas",
        "fantasmas",
        "aromas",
        "diplomas",
        "panoramas",
        "teoremas",
        "futuristas",
        "dentistas",
        "taxistas",
        "pianistas",
        "colegas",
        "jinetas",
        "curas",
        "gorilas",
    ]
)
_FEMININE = frozenset(
    [
        "veces",
        "noches",
        "tardes",
        "calles",
        "clases",
        "partes",
        "mujeres",
        "flores",
        "leyes",
        "luces",
        "imágenes",
        "series",
        "manos",
        "fotos",
        "motos",
        "radios",
        "torres",
        "naves",
        "nubes",
        "llaves",
        "bases",
        "frases",
        "fases",
        "claves",
        "redes",
        "sedes",
        "mentes",
        "gentes",
        "fuentes",
        "muertes",
        "suertes",
        "cárceles",
        "pieles",
        "sales",
        "señales",
        "catedrales",
        "madres",
        "actrices",
        "raíces",
        "cruces",
        "voces",
        "paces",
        "narices",
        "tesis",
        "crisis",
        "dosis",
        "síntesis",
        "hipótesis",
        "piezas",
        "órdenes",
        "vírgenes",
        "razas",
        "sangres",
        "leches",
        "carnes",
        "costumbres",
        "cumbres",
        "nubes",
        "islas",
        "variables",
        "capitales",
        "sucursales",
    ]
)
_MASCULINE_IONES = frozenset(
    ["millones", "camiones", "aviones", "leones", "corazones", "ratones", "peones", "campeones"]
)
_FEMININE_ENDS = ("dades", "tades", "tudes", "iones", "umbres")
_ONE_FEMININE = frozenset(
    [
        "vez",
        "noche",
        "tarde",
        "calle",
        "clase",
        "parte",
        "mujer",
        "flor",
        "ley",
        "luz",
        "imagen",
        "serie",
        "mano",
        "foto",
        "moto",
    ]
)
_ONE_MASCULINE = frozenset(
    ["día", "mapa", "problema", "sistema", "programa", "tema", "idioma", "planeta", "clima", "poema"]
)
_NO_NOUN = frozenset(
    [
        "a",
        "al",
        "ante",
        "bajo",
        "con",
        "contra",
        "de",
        "del",
        "desde",
        "durante",
        "e",
        "en",
        "entre",
        "hacia",
        "hasta",
        "ni",
        "o",
        "para",
        "pero",
        "por",
        "que",
        "según",
        "si",
        "sin",
        "sobre",
        "tras",
        "u",
        "y",
        "ya",
        "es",
        "son",
        "era",
        "eran",
        "fue",
        "fueron",
        "está",
        "están",
        "hay",
        "más",
        "menos",
        "se",
        "no",
        "como",
        "cuando",
        "donde",
        "la",
        "las",
        "los",
        "el",
        "lo",
        "le",
        "les",
        "me",
        "te",
        "nos",
        "os",
        "su",
        "sus",
        "mi",
        "mis",
        "tu",
        "tus",
    ]
)
_AMERICAN = frozenset(["MX", "US", "PR", "GT", "HN", "SV", "NI", "PA", "DO", "CU", "PE", "419"])


class Spanish(Language):
    """Spanish; regions that write decimals with a point may group digits by a comma."""

    day_mark = r"\s?(?:º|°|\.º|o)?"
    before_month = r"(?:de\s)?"
    before_year = r"(?:del?\s)?"
    letter_words = "AEOUY"
    digits = tuple(_BELOW_THIRTY[:10])
    minus, to, by, percent, permille, of = "menos", "a", "por", "por ciento", "por mil", "de"
    number_sign = "número"
    letters: ClassVar[Mapping[str, str]] = dict(
        zip(
            "ABCDEFGHIJKLMNÑOPQRSTUVWXYZ",
            (
                "a be ce de e efe ge hache i jota ka ele eme ene eñe o pe cu erre ese te u uve uve_doble equis "
                "i_griega zeta"
            )
            .replace("_", "\u00a0")
            .split(" "),
            strict=True,
        )
    )
    months = (
        "enero",
        "febrero",
        "marzo",
        "abril",
        "mayo",
        "junio",
        "julio",
        "agosto",
        "septiembre",
        "octubre",
        "noviembre",
        "diciembre",
    )
    month_abbreviations: ClassVar[Mapping[str, int]] = {
        "ene": 1, "feb": 2, "mar": 3, "abr": 4, "may": 5, "jun": 6, "jul": 7, "ago": 8, "sep": 9, "sept": 9,
        "oct": 10, "nov": 11, "dic": 12, "setiembre": 9,
    }  # fmt: skip
    units: ClassVar[Mapping[str, Noun]] = {
        "km/h": Noun("kilómetro por hora", "kilómetros por hora"),
        "m/s": Noun("metro por segundo", "metros por segundo"),
        "km²": Noun("kilómetro cuadrado", "kilómetros cuadrados"),
        "km2": Noun("kilómetro cuadrado", "kilómetros cuadrados"),
        "m²": Noun("metro cuadrado", "metros cuadrados"), "m2": Noun("metro cuadrado", "metros cuadrados"),
        "cm²": Noun("centímetro cuadrado", "centímetros cuadrados"),
        "m³": Noun("metro cúbico", "metros cúbicos"), "m3": Noun("metro cúbico", "metros cúbicos"),
        "km": Noun("kilómetro", "kilómetros"), "m": Noun("metro", "metros"), "cm": Noun("centímetro",
        "centímetros"),
        "mm": Noun("milímetro", "milímetros"), "nm": Noun("nanómetro", "nanómetros"),
        "kg": Noun("kilogramo", "kilogramos"), "g": Noun("gramo", "gramos"), "mg": Noun("miligramo",
        "miligramos"),
        "t": Noun("tonelada", "toneladas", True), "lb": Noun("libra", "libras", True), "oz": Noun("onza",
        "onzas", True),
        "l": Noun("litro", "litros"), "L": Noun("litro", "litros"), "ml": Noun("mililitro", "mililitros"),
        "cl": Noun("centilitro", "centilitros"),
        "°C": Noun("grado Celsius", "grados Celsius"), "ºC": Noun("grado Celsius", "grados Celsius"),
        "°F": Noun("grado Fahrenheit", "grados Fahrenheit"), "°": Noun("grado", "grados"),
        "h": Noun("hora", "horas", True), "hs": Noun("hora", "horas", True), "hrs": Noun("hora", "horas",
        True),
        "min": Noun("minuto", "minutos"), "s": Noun("segundo", "segundos"), "seg": Noun("segundo",
        "segundos"),
        "ms": Noun("milisegundo", "milisegundos"),
        "Hz": Noun("hercio", "hercios"), "kHz": Noun("kilohercio", "kilohercios"),
        "MHz": Noun("megahercio", "megahercios"), "GHz": Noun("gigahercio", "gigahercios"),
        "W": Noun("vatio", "vatios"), "kW": Noun("kilovatio", "kilovatios"), "MW": Noun("megavatio",
        "megavatios"),
        "kWh": Noun("kilovatio hora", "kilovatios hora"), "V": Noun("voltio", "voltios"),
        "KB": Noun("kilobyte", "kilobytes"), "kB": Noun("kilobyte", "kilobytes"), "MB": Noun("megabyte",
        "megabytes"),
        "GB": Noun("gigabyte", "gigabytes"), "TB": Noun("terabyte", "terabytes"),
        "Mbps": Noun("megabit por segundo", "megabits por segundo"), "dB": Noun("decibelio", "decibelios"),
        "ha": Noun("hectárea", "hectáreas", True), "kcal": Noun("kilocaloría", "kilocalorías", True),
        "px": Noun("píxel", "píxeles"), "CV": Noun("caballo", "caballos"),
    }  # fmt: skip
    _euro = Currency(Noun("euro", "euros"), Noun("céntimo", "céntimos"))
    _dollar = Currency(Noun("dólar", "dólares"), Noun("centavo", "centavos"))
    _peso = Currency(Noun("peso", "pesos"), Noun("centavo", "centavos"))
    _pound = Currency(Noun("libra", "libras", True), Noun("penique", "peniques"))
    currencies: ClassVar[Mapping[str, Currency]] = {
        "€": _euro, "EUR": _euro, "$": _dollar, "US$": _dollar, "USD": _dollar, "£": _pound, "GBP": _pound,
        "MXN": Currency(Noun("peso mexicano", "pesos mexicanos"), Noun("centavo", "centavos")),
        "ARS": Currency(Noun("peso argentino", "pesos argentinos"), Noun("centavo", "centavos")),
        "COP": Currency(Noun("peso colombiano", "pesos colombianos"), Noun("centavo", "centavos")),
        "CLP": Currency(Noun("peso chileno", "pesos chilenos")),
        "¥": Currency(Noun("yen", "yenes")), "JPY": Currency(Noun("yen", "yenes")),
        "CHF": Currency(Noun("franco suizo", "francos suizos"), Noun("céntimo", "céntimos")),
        "₿": Currency(Noun("bitcóin", "bitcoines")),
    }  # fmt: skip
    scales: ClassVar[Mapping[str, str]] = {
        "mil": "mil", "millón": "millón", "millones": "millones", "billón": "billón", "billones": "billones",
        "M": "millones", "mill.": "millones",
    }  # fmt: skip
    abbreviations: ClassVar[Mapping[str, str]] = {
        "Sr": "señor", "Sra": "señora", "Srta": "señorita", "Sres": "señores", "Dr": "doctor",
        "Dra": "doctora",
        "Prof": "profesor", "Profa": "profesora", "Lic": "licenciado", "Ing": "ingeniero",
        "Arq": "arquitecto",
        "Gral": "general", "Cap": "capitán", "Sto": "santo", "Sta": "santa", "D": "don", "Dña": "doña",
        "Dª": "doña",
        "Ud": "usted", "Uds": "ustedes", "Vd": "usted", "Vds": "ustedes",
        "Avda": "avenida", "Av": "avenida", "Pza": "plaza", "Plza": "plaza", "C/": "calle",
        "núm": "número", "Núm": "número", "n.º": "número", "N.º": "número", "nº": "número", "Nº": "número",
        "No": "número",
        "pág": "página", "págs": "páginas", "cap": "capítulo", "vol": "volumen", "art": "artículo",
        "fig": "figura",
        "etc": "etcétera", "p. ej": "por ejemplo", "p.ej": "por ejemplo", "ej": "ejemplo",
        "aprox": "aproximadamente",
        "tel": "teléfono", "Tel": "teléfono", "tfno": "teléfono", "dpto": "departamento",
        "Dpto": "departamento",
        "Cía": "compañía", "EE. UU": "Estados Unidos", "EE.UU": "Estados Unidos", "EEUU": "Estados Unidos",
        "RR. HH": "recursos humanos", "RR.HH": "recursos humanos", "JJ. OO": "Juegos Olímpicos",
        "JJ.OO": "Juegos Olímpicos", "S. A": "ese a", "S.A": "ese a", "S.L": "ese ele",
        "a. C": "antes de Cristo",
        "a.C": "antes de Cristo", "d. C": "después de Cristo", "d.C": "después de Cristo", "y/o": "y o",
        "a. m": "a eme", "a.m": "a eme", "p. m": "pe eme", "p.m": "pe eme", "vs": "versus", "máx": "máximo",
        "mín": "mínimo",
        "izq": "izquierda", "dcha": "derecha", "Ntra": "nuestra", "q. e. p. d": "que en paz descanse",
    }  # fmt: skip
    closing = frozenset(
        [
            *("etc", "EE. UU", "EE.UU", "RR. HH", "RR.HH", "JJ. OO", "JJ.OO", "S. A", "S.A", "S.L", "Cía"),
            *("a. C", "a.C", "d. C", "d.C", "a. m", "a.m", "p. m", "p.m"),
        ]
    )
    needs_number = frozenset(["No", "cap", "vol", "art", "fig", "núm", "pág", "págs", "ej", "máx", "mín"])
    without_point = frozenset(["C/", "n.º", "N.º", "nº", "Nº", "Dª", "EEUU", "y/o"])
    acronyms: ClassVar[Mapping[str, str]] = {
        "OTAN": "", "ONU": "", "UNESCO": "", "UNICEF": "", "FIFA": "", "UEFA": "", "RENFE": "", "IVA": "",
        "SIDA": "",
        "COVID": "", "NASA": "", "OMS": "", "UNAM": "", "PEMEX": "", "INE": "", "OPEP": "", "ONCE": "",
        "AVE": "", "PIN": "",
        "SIM": "", "RAM": "", "ETA": "", "UVI": "", "UCI": "", "OVNI": "", "PYME": "", "ASCII": "",
        "OK": "okey", "TV": "te uve",
        "NO": "", "SI": "", "SÍ": "", "EL": "", "LA": "", "LOS": "", "LAS": "", "DE": "", "DEL": "",
        "EN": "", "CON": "", "POR": "",
        "QUE": "", "UN": "", "UNA": "", "ES": "", "AL": "", "SE": "", "LO": "", "YA": "", "YO": "", "TU": "",
        "TÚ": "", "MI": "",
        "SU": "", "MÁS": "", "PARA": "", "PERO": "", "MUY": "", "HOY": "", "VIH": "uve i hache",
        "SOS": "ese o ese",
    }  # fmt: skip
    symbols: ClassVar[Mapping[str, str]] = {
        "&": "y", "@": "arroba", "%": "por ciento", "+": "más", "=": "igual a", "×": "por", "÷": "entre",
        "±": "más menos", "<": "menor que", ">": "mayor que", "≤": "menor o igual que",
        "≥": "mayor o igual que",
        "≠": "distinto de", "≈": "aproximadamente", "°": "grados", "©": "copyright", "®": "marca registrada",
        "™": "marca registrada", "§": "sección", "€": "euros", "$": "dólares", "£": "libras", "¥": "yenes",
        "²": "al cuadrado", "³": "al cubo", "∞": "infinito", "√": "raíz cuadrada de", "→": "a", "µ": "micro",
        "π": "pi",
    }  # fmt: skip
    fractions: ClassVar[Mapping[str, str]] = {
        "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8",
        "⅞": "7/8",
        "⅕": "1/5", "⅖": "2/5",
    }  # fmt: skip
    roman_contexts: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            [
                "siglo",
                "siglos",
                "Siglo",
                "capítulo",
                "Capítulo",
                "tomo",
                "Tomo",
                "volumen",
                "Volumen",
                "acto",
                "Acto",
                "escena",
                "Escena",
                "título",
                "Título",
                "fase",
                "tipo",
                "nivel",
                "parte",
                "Parte",
                "libro",
                "Libro",
                "sección",
                "Sección",
                "artículo",
                "Artículo",
                "anexo",
                "Anexo",
                "grado",
                "clase",
                "Mundial",
                "Juegos",
                "edición",
                "congreso",
                "Congreso",
                "Rocky",
                "legislatura",
            ],
            "cardinal",
        ),
        **dict.fromkeys(
            [
                "Felipe",
                "Carlos",
                "Alfonso",
                "Fernando",
                "Juan",
                "Pablo",
                "Luis",
                "Enrique",
                "Pedro",
                "Jaime",
                "Sancho",
                "Isabel",
                "Benedicto",
                "Pío",
                "León",
                "Gregorio",
                "Clemente",
                "Inocencio",
                "Alejandro",
                "Nicolás",
                "Catalina",
                "Federico",
                "Iván",
                "Napoleón",
                "Ramón",
                "Jorge",
                "Guillermo",
                "Eduardo",
                "Ricardo",
                "Jacobo",
                "Francisco",
                "Víctor",
                "Manuel",
                "Ramsés",
                "Ptolomeo",
                "Darío",
                "Jerjes",
                "José",
                "Leopoldo",
                "Otón",
                "María",
                "Sixto",
                "Urbano",
                "Julio",
                "Bonifacio",
                "Adriano",
                "Berenguer",
                "García",
                "Ordoño",
                "Bermudo",
                "Ramiro",
            ],
            "ordinal",
        ),
    }
    address: ClassVar[Mapping[str, str]] = {
        "www": "triple uve doble", ".": "punto", "/": "barra", "-": "guion", "_": "guion bajo",
        "@": "arroba", ":": "dos puntos",
        "?": "interrogación", "=": "igual", "&": "y", "#": "almohadilla", "+": "más", "%": "por ciento",
        "*": "asterisco", "~": "virgulilla",
    }  # fmt: skip

    def __init__(self, code: str, region: str = "") -> None:
        super().__init__(code, region)
        self.grouping = ".," if region in _AMERICAN else "."

    def cardinal(self, number: int, *, feminine: bool | None = None) -> str:
        """See `Language.cardinal`; *un* and *veintiún* before a masculine noun, *una* before a feminine."""
        if not number:
            return "cero"
        trillions, rest = divmod(number, 10**12)
        millions, rest = divmod(rest, 10**6)
        thousands, ones = divmod(rest, 1000)
        words = []
        if trillions:
            words.append(
                "un billón" if trillions == 1 else f"{self.cardinal(trillions, feminine=False)} billones"
            )
        if millions:
            words.append(
                "un millón" if millions == 1 else f"{self.cardinal(millions, feminine=False)} millones"
            )
        if thousands:
            head = _below_thousand(thousands, feminine=bool(feminine), short=True)
            words.append("mil" if thousands == 1 else f"{head} mil")
        if ones:
            words.append(_below_thousand(ones, feminine=bool(feminine), short=feminine is False))
        return " ".join(words)

    def ordinal(self, number: int, *, feminine: bool = False) -> str:
        """See `Language.ordinal`; beyond 999 the cardinal is said."""
        if not 0 < number < 1000:
            return self.cardinal(number)
        hundreds, rest = divmod(number, 100)
        words = [_ORDINAL_HUNDREDS[hundreds]] if hundreds else []
        if 0 < rest < 13:
            words.append(_ORDINAL_ONES[rest])
        elif rest:
            tens, ones = divmod(rest, 10)
            if tens == 1:
                words.append(
                    {3: "decimotercero", 7: "decimoséptimo"}.get(ones, f"decimo{_ORDINAL_ONES[ones]}")
                )
            else:
                words += [_ORDINAL_TENS[tens], *([_ORDINAL_ONES[ones]] if ones else [])]
        return " ".join(f"{word[:-1]}a" if feminine else word for word in words)

    def regnal(self, number: int, name: str) -> str:
        """*Felipe sexto*, *Isabel segunda*, *Juan veintitrés*."""
        feminine = name in ("Isabel", "María", "Catalina")
        return self.ordinal(number, feminine=feminine) if number <= 10 else self.cardinal(number)

    def mark_word(self, mark: str) -> str:
        """A comma or a point, as written."""
        return "punto" if mark == "." else "coma"

    def fraction_digits(self, fraction: str) -> str:
        """Up to two digits as a number, with its zeros before; more one by one."""
        stripped = fraction.lstrip("0")
        if len(fraction) > 2 or not stripped:
            return self.digit_by_digit(fraction)
        return " ".join(["cero"] * (len(fraction) - len(stripped)) + [self.cardinal(int(stripped))])

    def plain_number(self, number: Number, following: str) -> str:
        """Agrees with the noun behind it, as far as its ending tells."""
        return self.number(number, feminine=_gender(following, plural=not number.is_one))

    def _scaled(self, number: Number, scale: str) -> str:
        word = self.scales[scale]
        return "millón" if number.is_one and word == "millones" else word

    def money(self, number: Number, currency: Currency, scale: str) -> str:
        """*Tres millones de euros*, but *tres mil euros*."""
        if scale == "mil":
            return f"{self.number(number)} mil {currency.major.many}"
        if scale and number.is_one:
            return f"un {self._scaled(number, scale)} de {currency.major.many}"
        return super().money(number, currency, scale)

    def counted(self, number: Number, noun: Noun) -> str:
        """*Un millón de euros*, *veintiún kilos*."""
        words = super().counted(number, noun)
        if not number.fraction and len(number.whole) > 6 and number.whole.endswith("000000"):
            head = self.number(number, feminine=False)
            return f"{head} de {noun.many}"
        return words

    def join_money(self, major: str, minor: str) -> str:
        """See `Language.join_money`."""
        return f"{major} con {minor}"

    def time(self, hour: int, minute: int, second: int | None, meridiem: str) -> str | None:
        """*Diez y media*, *quince treinta*, *tres de la tarde*."""
        if hour > 24 or minute > 59 or (second or 0) > 59:
            return None
        words = ["una" if hour == 1 else "veintiuna" if hour == 21 else self.cardinal(hour)]
        if minute and hour <= 12:
            words.append("y " + {15: "cuarto", 30: "media"}.get(minute, self.cardinal(minute)))
        elif minute:
            words.append(self.cardinal(minute))
        if second:
            words.append(f"y {self.counted(Number(str(second)), Noun('segundo', 'segundos'))}")
        if meridiem == "a":
            words.append("de la noche" if hour == 12 else "de la mañana")
        elif meridiem:
            words.append("del mediodía" if hour == 12 else "de la tarde" if hour < 8 else "de la noche")
        return " ".join(words)

    def date(
        self, year: int | None, month: int, day: int | None, *, article: bool = False, before: str = ""
    ) -> str | None:
        """*Quince de marzo de dos mil veinticuatro*."""
        if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
            return None
        first = "uno" if self.region == "ES" else "primero"
        words = [f"{first if day == 1 else self.cardinal(day)} de"] if day is not None else []
        words.append(self.months[month - 1])
        if year is not None:
            words.append(f"de {self.year(year)}")
        return " ".join(words)

    def simple_fraction(self, above: int, below: int) -> str | None:
        """*Un medio*, *tres cuartos*."""
        if below not in _DENOMINATORS or not 0 < above < below:
            return None
        name = _DENOMINATORS[below]
        return f"un {name}" if above == 1 else f"{self.cardinal(above)} {name}s"

    def mixed_fraction(self, whole: int, above: int, below: int) -> str | None:
        """*Dos y medio*."""
        fraction = self.simple_fraction(above, below)
        if fraction is None:
            return None
        return f"{self.cardinal(whole)} y {'medio' if (above, below) == (1, 2) else fraction}"


def _below_thousand(number: int, *, feminine: bool, short: bool) -> str:
    if number == 100:
        return "cien"
    hundreds, rest = divmod(number, 100)
    words = []
    if hundreds:
        name = _HUNDREDS[hundreds]
        words.append(f"{name[:-2]}as" if feminine and hundreds > 1 else name)
    if rest:
        words.append(_below_hundred(rest, feminine=feminine, short=short))
    return " ".join(words)


def _below_hundred(number: int, *, feminine: bool, short: bool) -> str:
    one = "una" if feminine else "un" if short else "uno"
    if number == 1:
        return one
    if number == 21:
        return "veintiún" if one == "un" else f"veinti{one}"
    if number < 30:
        return _BELOW_THIRTY[number]
    tens, ones = divmod(number, 10)
    if not ones:
        return _TENS[tens]
    return f"{_TENS[tens]} y {one if ones == 1 else _BELOW_THIRTY[ones]}"


def _gender(noun: str, *, plural: bool) -> bool | None:
    """Whether a noun is feminine, from its ending; none if what follows is hardly a noun."""
    if not noun or noun in _NO_NOUN:
        return None
    if not plural:
        if noun in _ONE_MASCULINE:
            return False
        return noun in _ONE_FEMININE or noun.endswith(("a", "ción", "sión", "dad", "tad", "tud"))
    if not noun.endswith("s"):
        return False if noun == "mil" else None
    if noun in _FEMININE:
        return True
    if noun in _MASCULINE or noun in _MASCULINE_IONES:
        return False
    return noun.endswith(("as", *_FEMININE_ENDS))
