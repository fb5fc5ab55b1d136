"""The words that training text is made of, and the rule that keeps some of them for the evaluation alone.

Function words are shared. Every word that carries a fact (nouns, verbs, adjectives, invented names, numbers, codes)
belongs to exactly one split, by a checksum of its letters: what the evaluation asks for, training has never seen.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path


def _read(path: Path) -> dict[str, list[str]]:
    """Read lists of words: a `[name]`, then its words; "-" is the empty one."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            words = found.setdefault(line.strip("[]"), [])
        else:
            words += ["" if word == "-" else word for word in line.split()]
    return found


_LISTS = _read(Path(__file__).parent / "words.txt")
NOUNS = _LISTS["nouns"]
ADJECTIVES = _LISTS["adjectives"]
VERBS = _LISTS["verbs"]
IRREGULAR = dict(pair.split("/") for pair in _LISTS["irregular"])

UNITS = _LISTS["units"]
MONTHS = _LISTS["months"]
WEEKDAYS = _LISTS["weekdays"]
JOBS = _LISTS["jobs"]
NUMBER_WORDS = _LISTS["number_words"]
COMMON = _LISTS["common"]
PLACES = _LISTS["places"]

_ONSETS = _LISTS["onsets"]
_NUCLEI = _LISTS["nuclei"]
_CODAS = _LISTS["codas"]
_ENDINGS = _LISTS["endings"]
_ACCENTED = str.maketrans({"a": "á", "e": "é", "o": "ö", "u": "ü", "n": "ñ", "s": "š"})

CONTENT = frozenset((*NOUNS, *ADJECTIVES, *VERBS))
"""Words of the lists that carry facts."""
_WORDS = [word for word in (*NOUNS, *ADJECTIVES, *VERBS) if len(word) > 2 and word.isalpha()]

EVALUATION_SHARE = 10  # one word in ten


def held_out(word: str) -> bool:
    """Whether a word that carries facts is kept for the evaluation."""
    return zlib.crc32(word.lower().encode()) % EVALUATION_SHARE == 0


class Words:
    """Draws words of one split.

    Args:
        rng: source of chance.
        evaluation: draw the words that are kept for the evaluation; False draws all others.
    """

    def __init__(self, rng: random.Random, *, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self._nouns = [word for word in NOUNS if self._mine(word)]
        self._adjectives = [word for word in ADJECTIVES if self._mine(word)]
        self._verbs = [word for word in VERBS if self._mine(word)]

    def noun(self) -> str:
        """A common noun; now and then an invented one."""
        shape = self.rng.random()
        if shape < 0.1:
            return self.invented().lower()
        return self.blend() if shape < 0.35 else self.rng.choice(self._nouns)

    def adjective(self) -> str:
        """An adjective; now and then one that nobody has heard of."""
        return self.blend() if self.rng.random() < 0.2 else self.rng.choice(self._adjectives)

    def verb(self) -> str:
        """The infinitive of a verb, likewise."""
        return self.blend() if self.rng.random() < 0.15 else self.rng.choice(self._verbs)

    def thing(self) -> str:
        """A noun phrase of one to three words, without an article."""
        shape = self.rng.random()
        if shape < 0.45:
            return self.noun()
        if shape < 0.75:
            return f"{self.noun()} {self.noun()}"
        return f"{self.adjective()} {self.noun()}"

    def blend(self) -> str:
        """The beginning of one word and the end of another: any run of letters may have to be copied."""
        while True:
            first, second = self.rng.choice(_WORDS), self.rng.choice(_WORDS)
            word = first[: self.rng.randint(2, len(first))] + second[self.rng.randint(0, len(second) - 2) :]
            if 4 <= len(word) <= 13 and self._mine(word):
                return word

    def invented(self) -> str:
        """A capitalised word that is in no dictionary."""
        if self.rng.random() < 0.3:
            return self.blend().capitalize()
        while True:
            count = self.rng.choice((1, 2, 2, 2, 3))
            word = "".join(
                self.rng.choice(_ONSETS) + self.rng.choice(_NUCLEI) + self.rng.choice(_CODAS) for _ in range(count)
            ) + self.rng.choice(_ENDINGS)
            if self.rng.random() < 0.06:
                place = self.rng.randrange(len(word))
                word = word[:place] + word[place].translate(_ACCENTED) + word[place + 1 :]
            if 3 <= len(word) <= 12 and self._mine(word):
                return word.capitalize()

    def name(self) -> str:
        """The name of a person, a place, a firm or a product."""
        shape = self.rng.random()
        if shape < 0.55:
            return self.invented()
        if shape < 0.7:
            return f"{self.invented()} {self.invented()}"
        if shape < 0.8:
            return f"{self.invented()} {self.rng.choice(self._nouns).capitalize()}"
        if shape < 0.9:
            return f"{self.rng.choice(self._adjectives).capitalize()} {self.rng.choice(self._nouns).capitalize()}"
        return f"{self.invented()} {self.rng.randrange(1, 100)}"

    def person(self) -> str:
        """First name and surname."""
        return f"{self.invented()} {self.invented()}"

    def number(self) -> str:
        """A number as people write it."""
        while True:
            shape = self.rng.random()
            if shape < 0.45:
                text = str(self.rng.randrange(2, 100))
            elif shape < 0.65:
                text = str(self.rng.randrange(100, 1000))
            elif shape < 0.75:
                text = f"{self.rng.randrange(1, 100)},{self.rng.randrange(1000):03d}"
            elif shape < 0.9:
                text = f"{self.rng.randrange(0, 100)}.{self.rng.randrange(1, 100)}"
            else:
                text = str(self.rng.randrange(1000, 100000))
            if self._mine(text):
                return text

    def code(self) -> str:
        """A part number, an error code or a version."""
        while True:
            letters = "".join(self.rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(self.rng.choice((1, 2, 2, 3))))
            digits = self.rng.randrange(1, 1000)
            shape = self.rng.random()
            if shape < 0.6:
                text = f"{letters}-{digits}"
            elif shape < 0.8:
                text = f"{letters}{digits}"
            elif shape < 0.9:
                text = f"{letters}-{digits}{self.rng.choice('ABCX')}"
            else:
                text = f"{self.rng.randrange(1, 10)}.{self.rng.randrange(10)}.{self.rng.randrange(1, 20)}"
            if self._mine(text):
                return text

    def date(self) -> str:
        """A day, a month or a year."""
        shape = self.rng.random()
        year = self.rng.randrange(1700, 2030)
        if shape < 0.35:
            return str(year)
        if shape < 0.6:
            return f"{self.rng.choice(MONTHS)} {year}"
        if shape < 0.8:
            return f"{self.rng.randrange(1, 29)} {self.rng.choice(MONTHS)}"
        return self.rng.choice(WEEKDAYS)

    def amount(self) -> str:
        """A number with its unit."""
        number = self.number() if self.rng.random() < 0.85 else self.rng.choice(NUMBER_WORDS)
        return f"{number} {self.rng.choice(UNITS)}" if self.rng.random() < 0.9 else f"EUR {number}"

    def value(self) -> str:
        """What a fact may say: an amount, a code, a date, a name, a thing."""
        shape = self.rng.random()
        if shape < 0.4:
            return self.amount()
        if shape < 0.55:
            return self.code()
        if shape < 0.7:
            return self.date()
        if shape < 0.85:
            return self.name()
        return self.thing()

    def _mine(self, word: str) -> bool:
        return held_out(word) == self.evaluation


def participle(verb: str) -> str:
    """The past participle of a verb of the list."""
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    if verb in {"admit", "drop", "plan", "scan", "ship", "stop", "trim", "wrap"}:
        return verb + verb[-1] + "ed"
    return verb + "ed"


def third_person(verb: str) -> str:
    """The third person singular of a verb of the list."""
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def gerund(verb: str) -> str:
    """The -ing form of a verb of the list."""
    if verb in {
        "admit",
        "cut",
        "drop",
        "fit",
        "plan",
        "run",
        "scan",
        "set",
        "ship",
        "split",
        "stop",
        "trim",
        "win",
        "wrap",
    }:
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return verb + "ing"


def article(phrase: str) -> str:
    """`phrase` with "a" or "an"."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def capital(sentence: str) -> str:
    """`sentence` with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]
