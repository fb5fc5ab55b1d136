"""Sentences of any build: phrases put together at random, and questions of some of their words.

Fixed templates are learnt by heart; a reader that knows few of them cannot tell a sentence by its build. No phrase here
is one of the evaluation's.
"""

from __future__ import annotations

import random

_SUBJECTS = (
    "the {a} of {e}", "the {a} of the {e}", "the {e} {a}", "{e}'s {a}", "{e}", "the {e}", "{p}", "{p} from {e}",
    "the {j} of {e}", "the {adj} {a}", "{a_a} of {e}", "every {a}", "each {a} of the {e}", "no {a}", "most {a}s",
    "{adj} {a}s", "the {a} in the {n}", "the {n} {a}", "the {a} with the {n}", "part {c}", "the {a} {c}",
    "both the {a} and the {n}", "all {a}s from {e}", "whoever has {a_a}", "customers with {a_a}", "the {e} team",
    "staff of {e}", "your {a}", "one {a} per {n}", "the price of {a_a}", "the time for the {a}", "a lost {a}",
    "anyone at {e}", "the {adj} {e}",
)  # fmt: skip
_PREDICATES = (
    "{does} {o}", "must {do} {o}", "can {do} {o}", "may {do} {o}", "will {do} {o}", "has {done} {o}",
    "has not {done} {o}", "is {done}", "was {done}", "has to be {done}", "can be {done}", "must not be {done}",
    "is to be {done}", "is {done} by {o}", "was {done} with {o}", "is {o}", "was {o}", "has {o}", "had {o}",
    "gets {o}", "costs {o}", "takes {o}", "lasts {o}", "weighs {o}", "needs {o}", "holds {o}", "covers {o}",
    "is {adj}", "stays {adj}", "is {adj} for {o}", "comes with {o}", "comes from {o}", "goes to {o}", "depends on {o}",
    "is due for {doing}", "starts with {o}", "ends at {o}", "is kept in {o}", "is sold as {o}", "is part of {o}",
    "receives {o}", "offers {o}", "shows {o}", "runs on {o}", "is made of {o}", "measures {o}", "turned {adj}",
    "{does} and {does2} {o}", "must be {done} to {o}", "lies {where} {o}", "stands {where} {o}", "opens at {v}",
    "is about {q}", "means {o}", "is worth {v}", "applies to {o}", "goes on {doing} {o}", "fails to {do} {o}",
)  # fmt: skip
_OBJECTS = (
    "{v}", "{v}", "{v}", "{q}", "{q}", "up to {q}", "at least {q}", "about {q}", "every {q}", "between {v} and {v2}",
    "the {n}", "{a_n}", "the {adj} {n}", "the {thing}", "{e2}", "the {n} of {e2}", "{p}", "{c}", "{n}s and {thing}s",
    "a {adj} {thing}", "its {n}", "the same {n}", "the {n} or the {thing}", "{q} of {n}", "the {n} {c}",
    "more than {q}",
)  # fmt: skip
_TAILS = (
    "every {q}", "for {q}", "within {q}", "after {q}", "in {d}", "on {d}", "until {d}", "since {d}", "at {v}",
    "near {e2}", "in {e2}", "with {a_n}", "with the {adj} {n}", "by the {n}", "for the {thing}", "{where} the {n}",
    "on the {n}", "once every {q}", "per {n}", "up to {v}", "over {q}", "from {v} to {v2}", "as {c}", "of {v}",
    "before {doing} the {n}", "while the {n} is {adj}", "when the {n} is {done}", "if the {n} is {adj}",
    "because {rest}", "so that {rest}", "unless {rest}", "until {rest}", "where {rest}",
    "or after {q2} if that comes first",
    "at the {thing}", "to {do2} the {n}", "without {a_n}", "during the {n}", "each {n}", "at a {n} of {v}",
    "{adj} or not", "through the {n}", "by {q}",
)  # fmt: skip
_FRONTS = (
    "in {d}", "on {d}", "after {q}", "for {q}", "at {e2}", "with {a_n}", "every {q}", "{where} the {n}", "if {rest}",
    "when {rest}", "although {rest}", "since {d}", "during the {n}", "to {do2} the {n}", "today", "in most cases",
    "as soon as {rest}", "by {d}", "from {d} on", "once {rest}", "under {c}",
)  # fmt: skip
_JOINS = ("; {rest}", ", and {rest}", ", but {rest}", ", which {does2} the {thing}", ", as {rest}", ", while {rest}",
          ", and it {does2} {o}", " and {does2} {o}", ", or {q2}", " ({c})", ", about {v2}")  # fmt: skip
_WONDERS = (
    "How often", "How long", "How much", "How many {x}", "How quickly", "How far", "How", "When", "Where", "Why", "Who",
    "What", "Which {x}", "What {x}", "In which {x}", "At which {x}", "For how long", "By when", "Since when",
    "Under what {x}", "In which year", "How large", "How high", "What kind of {x}", "Whose {x}", "To whom",
    "With what", "Until when",
)  # fmt: skip
_OF_VALUE = (
    ("every {q}", ("How often", "How many times")),
    ("within {q}", ("How quickly", "How soon", "How fast")),
    ("for {q}", ("For how long", "How long")),
    ("after {q}", ("When", "After what time", "How much later")),
    ("{q}", ("How much", "How many {x}", "How long", "How much {x}")),
    ("part {c}", ("Which part", "What part")),
    ("{c}", ("Which code", "Which version", "Under what number", "Which {x}")),
    ("because {rest}", ("Why", "For what reason")),
    ("by {p}", ("By whom", "Who")),
    ("{p}", ("Who", "Whom", "Which person")),
    ("in {d}", ("When", "In which year", "In which month")),
    ("since {d}", ("Since when", "From when on")),
    ("until {d}", ("Until when", "By when")),
    ("{d}", ("When", "On which day", "On what date")),
    ("{v}", ("How much", "How high", "How large", "What", "Which {x}")),
    ("{e2}", ("Where", "Near what place", "Which place")),
    ("{where}", ("Where",)),
)
"""What a sentence tells, and how one asks for it."""
_HELPERS = ("does", "do", "is", "are", "was", "can", "may", "must", "should", "has", "did", "will", "would", "does one")
_TELLS = (
    "Tell me how", "Tell me about", "I need to know how", "Is it known when", "What is written about", "Explain why",
    "I am looking for", "Say when", "Describe", "Is there something about", "We want to know what", "Find", "Show me",
)  # fmt: skip
_ASKED = {
    "e": ("{e}", "{e}", "the {e}", "of {e}", "of the {e}", "at {e}", "in {e}", "for {e}", "{e}'s"),
    "a": ("the {a}", "the {a}", "{a_a}", "{a}", "of the {a}", "for {a}s", "the {a}s", "an {a}"),
    "n": ("the {n}", "{a_n}", "{n}", "with the {n}", "of the {n}", "for a {n}", "under {n}"),
    "adj": ("{adj}", "the {adj} one", "when it is {adj}"),
    "thing": ("the {thing}", "a {thing}", "for the {thing}"),
    "do": (
        "{do}", "{do}", "{does}", "be {done}", "{done}", "get {done}", "{doing}", "need {doing}", "have to be {done}",
    ),
    "c": ("{c}", "code {c}", "with {c}", "on {c}"),
    "p": ("{p}", "by {p}", "of {p}"),
    "j": ("the {j}", "as {j}"),
    "e2": ("near {e2}", "{e2}", "in {e2}"),
    "d": ("in {d}", "on {d}"),
    "do2": ("{do2}", "be {done2}", "{doing2}"),
}  # fmt: skip
_GENERAL = (
    "time", "number", "code", "version", "year", "amount", "kind", "size", "price", "day", "place", "colour", "length",
    "part", "name", "rate", "limit", "team", "account", "hours", "days", "people", "month", "case", "level", "date",
)  # fmt: skip
_FILLING = (
    "much",
    "there",
    "all",
    "now",
    "again",
    "usually",
    "then",
    "still",
    "really",
    "first",
    "each day",
    "any",
    "one",
)


def statement(rng: random.Random) -> str:
    """A template of a sentence."""
    text = rng.choice(_SUBJECTS) + " " + rng.choice(_PREDICATES)
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        text += " " + rng.choice(_TAILS)
    if rng.random() < 0.25:
        text = f"{rng.choice(_FRONTS)}, {text}"
    if rng.random() < 0.2:
        text += rng.choice(_JOINS)
    while "{o}" in text:
        text = text.replace("{o}", rng.choice(_OBJECTS), 1)
    return text + "."


def asked_for(statement: str, asked: set[str], rng: random.Random) -> tuple[str, str]:
    """One of the things that a template tells and a question does not name, and how to ask for it; "" if none."""
    told = [
        (told, openings)
        for told, openings in _OF_VALUE
        if told in statement and not any(f"{{{slot}}}" in told for slot in asked)
    ]
    if not told:
        return "", ""
    what, openings = rng.choice(told)
    return what, rng.choice(openings)


def question(rng: random.Random, told: set[str], statement: str) -> tuple[str, str]:
    """A template of a question that names two to four of the slots that a statement names.

    Args:
        rng: source of chance.
        told: the slots that the statement names.
        statement: its template; most questions ask for a kind of thing that it tells.

    Returns:
        The question, "" where the statement names too little, and the phrase of the statement that it asks for, "" if
        it may ask for anything.
    """
    known = [slot for slot in ("e", "a", "n", "do", "adj", "thing", "c", "p", "j", "e2", "d", "do2") if slot in told]
    if len(known) < 2:
        return "", ""
    weights = {"e": 3.0, "a": 3.0, "do": 2.0, "n": 1.5}
    chosen = sorted(known, key=lambda slot: -(rng.random() ** (1 / weights.get(slot, 1.0))))
    chosen = chosen[: rng.choice((2, 2, 3, 3, 4))]
    if rng.random() < 0.5:
        rng.shuffle(chosen)
    pieces = [rng.choice(_ASKED[slot]) for slot in chosen]
    if rng.random() < 0.3:
        pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(_FILLING))
    what, opening = asked_for(statement, set(chosen), rng) if rng.random() < 0.7 else ("", "")
    if opening or rng.random() < 0.75:
        start = (opening or rng.choice(_WONDERS)).replace("{x}", rng.choice(_GENERAL))
        if rng.random() < 0.85:
            start += " " + rng.choice(_HELPERS)
        return f"{start} {' '.join(pieces)}?", what
    return f"{rng.choice(_TELLS)} {' '.join(pieces)}{rng.choice('.?')}", ""
