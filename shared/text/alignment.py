"""Units to tokens, and which tokens speak which word.

Characters: exact, but where a front end rewrites whole texts (uroman reading a script by context), and there
in proportion to letters. Phonemes: espeak-ng reads a stretch whole, as it was in training, since it joins
words (``ʌvðə`` for *of the*) and links them (``le-z amˈi``). Its phonemes come back in groups between
spaces. As many groups as words: one each. Otherwise words and groups are matched by how long each word's
phonemes are when read alone, and a group that several words share is divided in that proportion. So a
word's time may be off by a phoneme or two where espeak-ng joins words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from shared.text import characters, espeak, piper
from shared.text.front_end import FrontEnd
from shared.text.specs import CharacterSpec, PiperSpec
from shared.text.tokens import Tokens, is_speakable, once_each
from shared.text.units import Unit

#: How many words may share a group of phonemes, and how many groups a word may have.
MOST_WORDS, MOST_GROUPS = 4, 6

#: Where there are more words times groups, each group goes to the word at the same share of the way.
MOST_CELLS = 40_000

#: What users write in IPA for lack of the right key.
IPA_TYPED = str.maketrans({"g": "ɡ", "'": "ˈ", ":": "ː", ",": "ˌ"})


@dataclass(frozen=True)
class Span:
    """A word of the source text and its tokens."""

    start: int
    end: int
    first_token: int
    last_token: int


@dataclass(frozen=True)
class Spoken:
    """Units as a model takes them.

    Attributes:
        text: The units' spoken text.
        tokens: Its tokens; no ids if nothing of it has a sound.
        spans: The words that have tokens; none where their places were not asked for.
    """

    text: str
    tokens: Tokens
    spans: tuple[Span, ...] = ()


def join(units: Sequence[Unit]) -> str:
    """The spoken text of some units."""
    first, *rest = units
    return first.spoken + "".join(f" {unit.spoken}" if unit.spaced else unit.spoken for unit in rest)


#: What espeak-ng reads a text with a voice as.
Readings = Mapping[tuple[str, str], Sequence[espeak.Clause]]


def read_ahead(
    front_end: FrontEnd, texts: Iterable[Sequence[Unit]], known: Container[tuple[str, str]] = ()
) -> Readings:
    """What `speak` needs of espeak-ng for several texts, asked for at once; nothing where it needs nothing.

    What is known already is left out. Errors are those of `speak`.
    """
    match front_end.definition:
        case PiperSpec() as spec:
            runs = [run for units in texts for _, run in _runs(units) if run[0].phonemes is None]
            pairs = dict.fromkeys(_written(spec, run)[0] for run in runs)
            unknown = [pair for pair in pairs if pair not in known]
            return espeak.read_many(unknown) if unknown else {}
    return {}


def speak(
    front_end: FrontEnd, units: Sequence[Unit], *, timed: bool = True, read: Readings | None = None
) -> Spoken:
    """Tokens of some units.

    Unless a unit has phonemes or a language of its own, they are those that ``front_end.tokenize`` gives for
    the text.

    Args:
        front_end: The voice's.
        units: What to speak.
        timed: Whether it is asked where each word is: with phonemes, that takes longer than all the rest.
        read: What was read ahead.

    Raises:
        MissingExtraError: The voice needs phonemes, and the extra ``phonemes`` is not installed.
        ConfigError: espeak-ng has no such voice.
    """
    match front_end.definition:
        case CharacterSpec() as spec:
            tokens, owners = _speak_characters(spec, units, timed)
        case PiperSpec() as spec:
            tokens, owners = _speak_piper(spec, units, timed, read or {})
    return Spoken(join(units), tokens, _spans(units, owners) if timed and tokens.ids else ())


def _spans(units: Sequence[Unit], owners: Sequence[int | None]) -> tuple[Span, ...]:
    """The words' tokens, from the unit that owns each token."""
    ranges: dict[int, tuple[int, int]] = {}
    first, current = 0, None
    for token, owner in enumerate([*owners, None]):
        if owner != current:
            if current is not None:
                ranges[current] = (ranges[current][0] if current in ranges else first, token)
            first, current = token, owner
    spans = []
    position = 0
    for index, unit in enumerate(units):
        if index in ranges:
            first, last = ranges[index]
            first, position = max(first, position), max(last, position)
            if unit.kind == "word" and first < position:
                spans.append(Span(unit.start, unit.end, first, position))
    return tuple(spans)


# ---------------------------------------------------------------------------------------- characters


def _speak_characters(
    spec: CharacterSpec, units: Sequence[Unit], timed: bool
) -> tuple[Tokens, list[int | None]]:
    """Tokens, and the unit that owns each if they are timed: a word owns the blanks around its characters."""
    placed = characters.place(spec, join(units))
    if not any(map(is_speakable, placed.spoken)):
        return Tokens((), (), placed.tokens.unknown), []
    if not timed:
        return placed.tokens, []
    owners: list[int | None] = [None] * len(placed.tokens.ids)
    for owner, token in zip(_character_owners(spec, units, placed.prepared), placed.places, strict=True):
        if token < len(owners):
            owners[token] = owner
    if spec.add_blank:
        words = [unit.kind == "word" for unit in units]
        last = len(owners) - 1
        for token in set(range(len(owners))).difference(placed.places):
            before = owners[token - 1] if token else None
            if before is not None and words[before]:
                owners[token] = before
            elif token < last:
                owners[token] = owners[token + 1]
    return placed.tokens, owners


def _character_owners(spec: CharacterSpec, units: Sequence[Unit], prepared: str) -> list[int | None]:
    """The unit that each prepared character belongs to; none for the spaces between units."""
    if spec.phonemize:
        return _group_owners(prepared, units)
    if not spec.is_uroman:
        lengths = characters.kept_lengths(spec)
        owners = _unit_owners(
            spec, units, prepared, [sum(map(lengths.__getitem__, unit.spoken)) for unit in units]
        )
        if owners is not None:
            return owners
    parts = [len(characters.prepare(spec, unit.spoken, strip=False)[0]) for unit in units]
    return _unit_owners(spec, units, prepared, parts) or _proportional_owners(units, prepared)


def _unit_owners(
    spec: CharacterSpec, units: Sequence[Unit], prepared: str, lengths: Sequence[int]
) -> list[int | None] | None:
    """Owners of prepared characters from how many each unit has; none if they do not add up."""
    owners: list[int | None] = []
    has_space = " " in spec.vocab
    for index, (unit, length) in enumerate(zip(units, lengths, strict=True)):
        if unit.spaced and index and has_space:
            owners.append(None)
        owners += [index] * length
    if spec.normalize:
        while owners and owners[0] is None and len(owners) > len(prepared):
            del owners[0]
        while owners and owners[-1] is None and len(owners) > len(prepared):
            del owners[-1]
    return owners if len(owners) == len(prepared) else None


def _proportional_owners(units: Sequence[Unit], prepared: str) -> list[int | None]:
    """Owners by share of letters, for a text that was rewritten as a whole."""
    letters = [index for index, unit in enumerate(units) for _ in unit.spoken]
    return [letters[position * len(letters) // len(prepared)] for position in range(len(prepared))]


def _group_owners(prepared: str, units: Sequence[Unit]) -> list[int | None]:
    """Owners of phonemes whose words are separated by spaces and may have marks attached."""
    groups = prepared.split(" ")
    atoms = [
        (index, atom)
        for index, unit in enumerate(units)
        if unit.kind == "word"
        for atom in unit.spoken.split()
    ]
    owners: list[int | None] = []
    groups_seen = False
    for group, shares in zip(groups, match_groups(groups, [atom for _, atom in atoms]), strict=True):
        owners += [None] if groups_seen else []
        groups_seen = True
        owners += [None if atom is None else atoms[atom][0] for atom in _divide(len(group), shares)]
    return [owner if is_speakable(symbol) else None for owner, symbol in zip(owners, prepared, strict=True)]


# ------------------------------------------------------------------------------------------ phonemes


class _Point(NamedTuple):
    """One code point of the phonemes, and the unit that it speaks if that was asked for."""

    symbol: str
    owner: int | None


def _speak_piper(
    spec: PiperSpec, units: Sequence[Unit], timed: bool, read: Readings
) -> tuple[Tokens, list[int | None]]:
    """Tokens, and the unit that owns each if they are timed."""
    points: list[_Point] = []
    unknown: list[str] = []
    for first, run in _runs(units):
        if points and run[0].spaced:
            points.append(_Point(" ", None))
        if run[0].phonemes is not None:
            points += [_Point(symbol, first) for symbol in _ipa(spec, run[0].phonemes)]
        else:
            sounds, unreadable = _read(spec, run, first, timed, read)
            points += sounds
            unknown += unreadable
    while points and points[-1].symbol == " ":
        points.pop()
    vocab = spec.vocab
    unknown += [point.symbol for point in points if point.symbol not in vocab]
    known = [point for point in points if point.symbol in vocab]
    if not any(is_speakable(point.symbol) for point in known):
        return Tokens((), (), once_each(unknown)), []
    tokens, places = piper.lay_out(spec, [point.symbol for point in known], once_each(unknown))
    if not timed:
        return tokens, []
    owners: list[int | None] = [None] * len(tokens.ids)
    ends = [*places[1:], len(owners) - len(spec.vocab[piper.END])]
    for point, start, end in zip(known, places, ends, strict=True):
        owners[start:end] = [point.owner] * (end - start)
    return tokens, owners


def _runs(units: Sequence[Unit]) -> list[tuple[int, list[Unit]]]:
    """Units that espeak-ng reads at once, each run with the index of its first; one with phonemes is alone.

    A mark behind a unit with phonemes is given its own run: espeak-ng drops a mark that begins a text.
    """
    runs: list[tuple[int, list[Unit]]] = []
    for index, unit in enumerate(units):
        after_phonemes = bool(runs) and runs[-1][1][-1].phonemes is not None
        if after_phonemes and unit.kind == "mark" and unit.spoken in espeak.MARKS and not unit.spaced:
            runs.append((index, [_as_phonemes(unit)]))
        elif (
            runs
            and unit.phonemes is None
            and not after_phonemes
            and runs[-1][1][-1].language == unit.language
        ):
            runs[-1][1].append(unit)
        else:
            runs.append((index, [unit]))
    return runs


def _as_phonemes(mark: Unit) -> Unit:
    return replace(mark, phonemes=espeak.MARKS[mark.spoken])


def _ipa(spec: PiperSpec, phonemes: str) -> str:
    """A user's IPA as the vocabulary writes it."""
    points = unicodedata.normalize("NFD", " ".join(phonemes.split()))
    if len(points) == 1:
        return points
    return "".join(
        point if point in spec.vocab and point not in "':," else point.translate(IPA_TYPED)
        for point in points
    )


def _written(spec: PiperSpec, run: Sequence[Unit]) -> tuple[tuple[str, str], list[str]]:
    """What espeak-ng is given of a run of units, a text and a voice; and the characters that it cannot be given."""
    text, unreadable = piper.part_unreadable(join(run))
    return (text.lower() if spec.lower_case else text, run[0].language or spec.espeak_voice), unreadable


def _read(
    spec: PiperSpec, run: Sequence[Unit], first: int, timed: bool, read: Readings
) -> tuple[list[_Point], list[str]]:
    """The phonemes of a run of units, and the characters that espeak-ng cannot be given."""
    pair, unreadable = _written(spec, run)
    _, voice = pair
    points: list[_Point] = []
    atoms = _atoms(run, first) if timed else []
    begun = 0
    for clause in read[pair] if pair in read else espeak.read_clauses(*pair):
        if not clause.sounds:
            continue
        here = [atom for atom in atoms if begun <= atom.position < clause.end]
        begun = clause.end
        if points:
            points.append(_Point(" ", None))
        points += _clause_points(clause, here, voice)
    return points, unreadable


@dataclass(frozen=True)
class _Atom:
    """A word that is spoken: its unit, its text, and where it is in the run's text."""

    owner: int
    text: str
    position: int


def _atoms(run: Sequence[Unit], first: int) -> list[_Atom]:
    atoms = []
    position = 0
    for index, unit in enumerate(run):
        position += 1 if unit.spaced and index else 0
        if unit.kind == "word":
            offset = 0
            for word in unit.spoken.split():
                offset = unit.spoken.index(word, offset)
                atoms.append(_Atom(first + index, word, position + offset))
                offset += len(word)
        position += len(unit.spoken)
    return atoms


def _clause_points(clause: espeak.Clause, atoms: Sequence[_Atom], voice: str) -> list[_Point]:
    sounds = unicodedata.normalize("NFD", clause.sounds)
    if not atoms:
        return [_Point(symbol, None) for symbol in sounds + clause.mark]
    groups = sounds.split(" ")
    points: list[_Point] = []
    if len(groups) == len(atoms):
        shares = [[(index, 1)] for index in range(len(groups))]
    else:
        shares = match_groups(groups, [_alone(atom.text, voice) for atom in atoms])
    for group, share in zip(groups, shares, strict=True):
        if points:
            points.append(_Point(" ", None))
        owners = _divide(len(group), share)
        points += [
            _Point(symbol, atoms[owner].owner if owner is not None else None)
            for symbol, owner in zip(group, owners, strict=True)
        ]
    points += [_Point(symbol, None) for symbol in clause.mark]
    return points


@lru_cache(maxsize=8192)
def _alone(word: str, voice: str) -> str:
    """The phonemes of a word that is read alone."""
    return unicodedata.normalize("NFD", espeak.phonemes(word, voice)).replace(" ", "")


# ------------------------------------------------------------------------------------------ matching


def match_groups(groups: Sequence[str], words: Sequence[str]) -> list[list[tuple[int, int]]]:
    """For each group of phonemes, the words in it and their weights, in order.

    The cheapest way to walk through both, where a step takes one word and one group, several words that
    share a group, several groups of one word, or a word that is not heard. A step costs how much the
    lengths differ, and more if the first or last phonemes do.

    Args:
        groups: Phonemes between spaces, N of them.
        words: Phonemes of each word alone, M of them.
    """
    if not words:
        return [[] for _ in groups]
    if len(groups) * len(words) > MOST_CELLS:
        return [[(at * len(words) // len(groups), 1)] for at in range(len(groups))]
    return _shares(_cheapest(_Side(groups), _Side(words)), words, len(groups))


#: How many words and how many groups a step takes.
_STEPS = [
    (1, 1),
    *((count, 1) for count in range(2, MOST_WORDS + 1)),
    *((1, count) for count in range(2, MOST_GROUPS + 1)),
    (1, 0),
    (0, 1),
]

#: Where a way has come to and what it has cost, to where it came from.
_Way = dict[int, tuple[float, int, int]]


class _Side:
    """Words or groups, as far as steps are compared.

    Attributes:
        ends: Phonemes before each part, and after the last.
        firsts: The first phoneme from each part on, stress left out.
        lasts: The last phoneme before each part, and at the end.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.ends = [0, *accumulate(map(len, parts))]
        self.lasts = [""]
        for part in parts:
            self.lasts.append(part[-1:] or self.lasts[-1])
        self.firsts = [""]
        for part in reversed(parts):
            self.firsts.append(part.lstrip("ˈˌ")[:1] if part else self.firsts[-1])
        self.firsts.reverse()

    def __len__(self) -> int:
        return len(self.ends) - 1


def _cheapest(groups: _Side, words: _Side) -> list[_Way]:
    """The cheapest ways to each pair of a word and a group near the diagonal."""
    # Local names: this is the inmost loop of reading a text.
    word_ends, word_firsts, word_lasts = words.ends, words.firsts, words.lasts
    group_ends, group_firsts, group_lasts = groups.ends, groups.firsts, groups.lasts
    steps = [(many, few, 0.5 * (many + few - 2)) for many, few in _STEPS]
    width = 8 + abs(len(groups) - len(words))
    ways: list[_Way] = [{} for _ in range(len(words) + 1)]
    ways[0][0] = (0.0, 0, 0)
    for at_word, way in enumerate(ways):
        middle = at_word * len(groups) // len(words)
        for at_group in range(max(0, middle - width), min(len(groups), middle + width) + 1):
            if at_group not in way:
                continue
            cost = way[at_group][0]
            for taken_words, taken_groups, crowding in steps:
                word_end, group_end = at_word + taken_words, at_group + taken_groups
                if word_end > len(words) or group_end > len(groups):
                    continue
                alone = word_ends[word_end] - word_ends[at_word]
                together = group_ends[group_end] - group_ends[at_group]
                if alone and together:
                    step = (
                        cost
                        + abs(alone - together)
                        + crowding
                        + (word_firsts[at_word] != group_firsts[at_group])
                        + (word_lasts[word_end] != group_lasts[group_end])
                    )
                else:
                    step = cost + 1.0 + alone + together
                known = ways[word_end].get(group_end)
                if known is None or step < known[0]:
                    ways[word_end][group_end] = (step, at_word, at_group)
    return ways


def _shares(ways: Sequence[_Way], words: Sequence[str], groups: int) -> list[list[tuple[int, int]]]:
    """Walk back along the cheapest way."""
    shares: list[list[tuple[int, int]]] = [[] for _ in range(groups)]
    word, group = len(words), groups
    while (word, group) != (0, 0):
        _, first_word, first_group = ways[word][group]
        weights = [(each, max(1, len(words[each]))) for each in range(first_word, word)]
        for each in range(first_group, group):
            shares[each] = weights
        word, group = first_word, first_group
    return shares


def _divide(length: int, shares: Sequence[tuple[int, int]]) -> list[int | None]:
    """Whose each of a group's phonemes is, by weight."""
    if not shares:
        return [None] * length
    total = sum(weight for _, weight in shares)
    owners: list[int | None] = []
    passed = 0
    for word, weight in shares:
        passed += weight
        owners += [word] * (round(length * passed / total) - len(owners))
    return owners
