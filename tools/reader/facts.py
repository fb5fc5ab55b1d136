"""Facts: a sentence that a document holds, and the questions that it answers.

Each family has statements and questions for training, and others that are kept for the evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tools.reader import builds
from tools.reader.words import JOBS, PLACES, Words, article, capital, gerund, participle, third_person


@dataclass(frozen=True)
class Family:
    """Ways to state one kind of fact and ways to ask for it; the `evaluation` ones never occur in training."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    evaluation_statements: tuple[str, ...]
    evaluation_questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A sentence, a question that it answers, what both speak of, and the templates they were made from.

    `told` is the phrase of the statement that the question asks for, "" where it may ask for anything.
    """

    sentence: str
    question: str
    slots: dict[str, str]
    statement: str
    asked: str
    told: str = ""


_OF_TOPIC, _FAMILIAR = ("e", "a", "n", "thing", "adj", "do", "j"), 0.45
"""What a topic has words for, and how often each of its things lends one to a fact."""
_VALUES = frozenset({"q", "v", "q2", "v2", "d", "c"})
"""Slots that may hold the same kind of thing."""


FAMILIES = {
    "attribute": Family(
        (
            "The {a} of {e} is {v}.",
            "The {a} of {e} was {v} at the last count.",
            "{e} has {a_a} of {v}.",
            "{e}'s {a} is {v}.",
            "For {e}, the {a} is {v}.",
            "The {e} {a} is {v}.",
            "In {e}, the {a} stands at {v}.",
            "{e} lists its {a} as {v}.",
            "As the {a} of {e}, the records give {v}.",
            "The {a} was set to {v} for {e}.",
            "With {e} comes {a_a} of {v}.",
            "{v} is the {a} of {e}.",
            "The {a} that {e} has chosen is {v}.",
            "{e} reports {v} as its {a}.",
            "The {a} of the {e} may not exceed {v}, and {rest}.",
            "The {e} needs {a_a} of at least {v}.",
            "The {e} accepts {a_a} of up to {v}; {rest}.",
            "Before the {thing} was {done}, the {a} of {e} was {v}.",
            "When {rest}, the {a} of the {e} is {v}.",
            "The {a} of {e} lies between {v} and {v2}.",
            "{e} gives {v} for {a_a} or {thing}.",
        ),
        (
            "What is the {a} of {e}?",
            "What is {e}'s {a}?",
            "What {a} does {e} have?",
            "Which {a} does the {e} have?",
            "How large is the {a} of {e}?",
            "How high is the {a} of the {e}?",
            "Tell me the {a} of {e}.",
            "{e}: what is the {a}?",
            "Do you know the {a} of {e}?",
            "And the {a} of {e}?",
            "What does the text say about the {a} of {e}?",
            "Give me the {a} for {e}.",
            "Can you find the {a} of the {e}?",
            "What was the {e} {a}?",
            "How much is the {a} for {e}?",
            "Where is the {a} of {e}?",
            "{a} of {e}?",
        ),
        (
            "{v} serves as the {a} at {e}.",
            "At {e} the {a} amounts to {v}.",
            "Everyone in {e} agreed that the {a} is {v}.",
            "Of all things at {e}, the {a} reached {v}.",
        ),
        (
            "I would like to hear which {a} {e} has.",
            "Please state {e}'s {a}.",
            "How much does the {a} of {e} come to?",
            "What might the {a} be for {e}?",
        ),
    ),
    "routine": Family(
        (
            "The {n} of the {e} must be {done} every {q}.",
            "Every {q} the {n} of the {e} has to be {done}.",
            "{Do} the {e} {n} every {q}, or after {q2} if that comes first.",
            "The {e} {n} is due for {doing} every {q}.",
            "{Doing} the {n} of the {e} takes {q}.",
            "The staff of {e} {do} the {n} once every {q}.",
            "It takes {q} to {do} the {n} of the {e}.",
            "The {n} of {e} is {done} within {q}.",
            "{Do} every {n} (part {c}) once every {q}, because {rest}.",
            "The {n} of the {e} can be {done} for {q} after {doing2}.",
            "Wait {q} before you {do} the {n} of the {e}.",
            "{e} {does} its {n} after {q}, and {rest}.",
        ),
        (
            "How often must the {n} of the {e} be {done}?",
            "How often does the {e} {n} need {doing}?",
            "How often does the {n} of the {e} have to be {done}?",
            "When is the {n} of {e} {done}?",
            "How long does it take to {do} the {n} of the {e}?",
            "After what time is {e}'s {n} {done}?",
            "How long does {doing} the {n} of {e} take?",
            "What is the time for {doing} the {e} {n}?",
            "For how long is the {n} of the {e} {done}?",
        ),
        (
            "Plan {q} for {doing} the {n} that belongs to the {e}.",
            "No more than {q} may pass until the {e} {n} gets {done}.",
        ),
        (
            "At which interval should one {do} the {n} of the {e}?",
            "How many hours or days go into {doing} the {e} {n}?",
        ),
    ),
    "event": Family(
        (
            "{p} {done} the {a} of {e} in {d}.",
            "In {d}, {e} {done} {a_a} near {e2}.",
            "The {a} in {e} was {done} by {p} in {d}.",
            "{p} {does} the {a} at {e}.",
            "{p} works as the {j} of {e}.",
            "The {j} of {e} is {p}.",
            "Since {d}, {p} has been the {j} of {e}.",
            "The {a} of {e} was {done} in {d}, when {rest}.",
            "It was {p} who {done} the {a} in {e}.",
            "{p}, the {j} of {e}, {done} the {a} on {d}.",
            "After {q} of work, {p} {done} the {a} for {e}.",
        ),
        (
            "Who {done} the {a} of {e}?",
            "Who {does} the {a} in {e}?",
            "When was the {a} of {e} {done}?",
            "When did {e} {do} the {a}?",
            "Who is the {j} of {e}?",
            "What is the name of the {e} {j}?",
            "In which year was the {a} of {e} {done}?",
            "By whom was the {a} {done} in {e}?",
            "Which {j} works for {e}?",
            "What did {p} do in {e}?",
            "What did {p} {do}?",
            "Where does {p} work?",
        ),
        (
            "{d} is when {p} {done} {e}'s {a}.",
            "Nobody but {p}, {j} at {e}, {done} the {a}.",
        ),
        (
            "Can you name the one who {done} {e}'s {a}?",
            "At what time was {e}'s {a} {done}?",
        ),
    ),
    "code": Family(
        (
            "Code {c} on the {e} means that the {a} has not been {done} for {q}.",
            "Error {c} of the {e} appears when the {a} does not {do}.",
            "The {e} shows {c} when its {a} is {done}.",
            "Version {c} of the {e} firmware {does} the {a} of the {n}.",
            "Part {c} {does} the {a} of the {e}.",
            "The {a} for the {e} has the part number {c}.",
            "Code {c} means that {a_a} of the {e} has sent nothing for {q}; {rest}.",
            "{c} on the display of the {e} stands for {a_a} that was {done} twice.",
            "Order the {a} as {c} if the {e} {does} the {n}.",
            "Firmware {c} for the {e} corrects the {a} that {done} the {n}.",
        ),
        (
            "Which code does the {e} show when the {a} is {done}?",
            "Which error code does the {e} show when {a_a} does not {do}?",
            "What does code {c} on the {e} mean?",
            "Which version {done} the {a} of {e}?",
            "Which {e} firmware version {done} the {a}?",
            "What happens when the {e} shows {c}?",
            "What does {c} stand for?",
            "Which part {does} the {a} of the {e}?",
            "What is the part number of the {a} for the {e}?",
            "Which code stands for {a_a} that was {done}?",
        ),
        (
            "Whenever the {a} gets {done}, {c} lights up on the {e}.",
            "On the {e}, {c} points to {a_a} that one should {do}.",
        ),
        (
            "The {e} tells me {c}, what is wrong?",
            "By which code does the {e} report the {a}?",
        ),
    ),
    "rule": Family(
        (
            "{A_n} account of {e} stores {a}s for {q}.",
            "{Adj} members of {e} may {do} up to {q} of {a} per day.",
            "Employees who {do} {a_a} receive {q} per day for {n}s.",
            "A lost {a} must be {done} to the {n} team within {q}.",
            "The discount on {n}s for {a_a} or {thing} is {q}.",
            "Every {n} that is {done} must carry {a_a} of {v}.",
            "Guests of {e} can {do} the {n} on {d} for {q}.",
            "{A_n} plan allows {q} {a}s each minute, and {rest}.",
            "During the {n}, staff of {e} may {do} the {a} for {q}.",
            "Anyone who {does} the {a} pays {q} to the {n}.",
            "{e} keeps the {a}s of {a_n} user for {q} and then {does} them.",
            "The {n} covers the {a} of the {e} for {q} after the {thing}.",
        ),
        (
            "For how long does {e} store the {a}s of {a_n} account?",
            "How much {a} may {adj} members of {e} {do} per day?",
            "How much money per day do employees get for {n}s when they {do} {a_a}?",
            "How quickly must a lost {a} be {done} to the {n} team?",
            "How much is the discount on {n}s for {a_a}?",
            "Which {a} must a {done} {n} carry?",
            "When can guests of {e} {do} the {n}?",
            "How many {a}s can {a_n} plan make each minute?",
            "How often may staff of {e} {do} the {a} while they are in the {n}?",
            "What does one pay for {doing} the {a} to the {n}?",
            "How long is the {a} of the {e} under {n}?",
        ),
        (
            "Up to {q} of {a} are free for {n}s that {e} has {done}.",
            "To {do} the {a} without {a_n}, {e} asks {q}.",
        ),
        (
            "Up to which limit can I {do} the {a} of {e} with {a_n}?",
            "What are the terms of {e} for {doing} the {a} as {a_n}?",
        ),
    ),
    "clause": Family(
        (
            "The {adj} {n} of {e} {does} the {a} {where} the {thing}.",
            "{Adj} {n}s {do} the {a} {where} {e}, so that {rest}.",
            "If the {n} is {adj}, {do} the {a} and {do2} the {thing}.",
            "Never {do} the {n} {where} the {adj} {a}, because {rest}.",
            "Please {do} the {a} and the {n} of {e} at hand when you {do2} the {thing}.",
            "The {n} stays {adj} until {e} has {done} the {a}.",
            "{e} {does} the {a} only if the {n} is {adj}; otherwise the {thing} is {done2}.",
            "A {adj} {n} {where} the {a} is {done} by the {thing}.",
            "Keep the {n} of the {e} {where} the {adj} {a}.",
            "Both the {a} and the {n} are {done} {where} {e}.",
        ),
        (
            "What {does} the {a} of {e}?",
            "What does the {adj} {n} of {e} {do}?",
            "What should I do if the {n} is {adj}?",
            "May I {do} the {n} {where} the {a}?",
            "What is said about the {adj} {n} and the {a}?",
            "Where does one {do} the {a} of the {n}?",
            "Why should the {n} be {adj}?",
            "Where is the {n} of the {e}?",
            "How is the {a} {done} with the {n}?",
            "When does {e} {do} the {a}?",
        ),
        (
            "Without {a_n}, {e} cannot {do} its {adj} {a}.",
            "{Doing} the {adj} {n} {where} {e} also {does} the {a}.",
        ),
        (
            "Is there anything on {doing} the {adj} {n} or the {a}?",
            "Explain what the {n} has to do with the {a} at {e}.",
        ),
    ),
}

_ANY_BUILD = 0.75
"""Share of the facts of training that are sentences of any build."""
_RESTS = (
    "the {n} stays {adj}",
    "{n}s need no {n2}",
    "the {n} is {done} again by the {n2}",
    "every {n} {does} the {n2} at night",
    "no {n} is left {where} the {n2}",
    "the {adj} {n} comes later",
    "{e} has no {n}",
    "most {n}s are {adj}",
    "the {n2} {does} it by itself",
)
_BEFORE = (
    "In {d}, ", "As a rule, ", "According to the {n}, ", "On most days, ", "In short, ", "At {e}, ",
    "For this reason, ",
    "However, ", "Until {d}, ", "Besides, ", "With the {adj} {n}, ", "If needed, ", "In a {adj} {n}, ", "Note that ",
)  # fmt: skip
_AFTER = (
    ", and {rest}", "; {rest}", " because {rest}", ", so that {rest}", " as long as {rest}", " {where} the {n}",
    ", which is {adj} for the {thing}", " at most", " unless {rest}", ", or {q} later", " in {d}", " for the {thing}",
)  # fmt: skip
_WITHIN = (
    "(part {c})",
    "(see {e})",
    "also",
    "usually",
    "- {adj} or not -",
    "(about {q})",
    '"{n}"',
    "still",
    "often",
    "then",
)
_LOWERED = frozenset(
    {"The", "For", "In", "As", "With", "When", "Before", "Every", "It", "After", "Since", "If", "A", "An", "During"}
)
_FILLERS = (
    "This page describes the {n} and the {thing}.",
    "The {n} is {adj}.",
    "Many {n}s are {adj} in the {n2}.",
    "People {do} the {n} when the {n2} is {adj}.",
    "Some say that the {n} {does} the {n2}.",
    "It is not known who {done} the {adj} {n}.",
    "See the {n} {where} the {n2} for more.",
    "There is no {n} {where} the {adj} {n2}.",
    "Since then the {n} has been {adj}.",
    "They {do} {n}s and {n2}s there.",
    "Ask the {n} team if the {n2} is {adj}.",
    "All of this holds for {adj} {n}s, too.",
    "{e} was named after {p}.",
    "The {n} and the {n2} belong to {e}.",
)


class Facts:
    """Makes facts and fillers of one split.

    Args:
        rng: source of chance.
        evaluation: use the words, statements and questions that are kept for the evaluation.
    """

    def __init__(self, rng: random.Random, *, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self.words = Words(rng, evaluation=evaluation)
        self._topic: list[dict[str, str]] = []

    @contextmanager
    def topic(self) -> Iterator[None]:
        """Facts made meanwhile speak of few things, as pages of one handbook do."""
        self._topic = [self.slots() for _ in range(self.rng.randint(2, 4))]
        try:
            yield
        finally:
            self._topic = []

    def fact(self, fixed: dict[str, str] | None = None, family: str | None = None) -> Fact:
        """A fact; `fixed` slots are taken over, so that facts can share what they speak of."""
        chosen = FAMILIES[family or self.rng.choice(list(FAMILIES))]
        slots = self.slots(fixed)
        statement, question, told = self._any_build() if family is None else ("", "", "")
        if not statement:
            statement = self.rng.choice(chosen.evaluation_statements if self.evaluation else chosen.statements)
            questions = chosen.evaluation_questions if self.evaluation else chosen.questions
            question = self._question(statement, questions)
        return self._fact(statement, question, slots, told)

    def variant(self, fact: Fact) -> Fact:
        """The same of something else: one word that the question names is another, and so are the values.

        It is any other fact where the question names values only.
        """
        both = sorted(slots_in(fact.asked) & slots_in(fact.statement) - {"d", "q", "v"})
        if not both:
            return self.fact()
        changed = self.rng.choice(both)
        while (fresh := self.slots())[changed] == fact.slots[changed]:
            pass
        kept = slots_in(fact.asked) | slots_in(fact.statement) - {"d", "q", "v", "q2", "v2", "e2"}
        slots = {**fresh, **_of(fact.slots, kept - {changed})}
        return self._fact(fact.statement, fact.asked, slots, fact.told)

    def distractor(self, fact: Fact) -> str:
        """A sentence with words of a fact's question that does not answer it; nothing where none was found.

        It has some of them and not the others, or all and nothing of the kind that is asked for; one of two says them
        twice.
        """
        asked = slots_in(fact.asked) & slots_in(fact.statement)
        wanted = slots_in(fact.told)
        all_of_them = bool(wanted) and self.rng.random() < 0.5
        for attempt in range(60):
            statement = builds.statement(self.rng)
            if self.rng.random() < 0.5:
                statement = statement[:-1] + self.rng.choice((", but ", ", and ", "; ")) + builds.statement(self.rng)
            named = slots_in(statement)
            shared = named & asked
            tells = bool(wanted & named) or bool(wanted & _VALUES and named & _VALUES)
            if all_of_them and attempt < 40 and shared != asked:  # which few statements name
                continue
            if shared and (shared < asked or (wanted and not tells)):
                return self._embellished(fill(statement, {**self.slots(), **_of(fact.slots, shared)}))
        return ""

    def _any_build(self) -> tuple[str, str, str]:
        """In training, for most facts: statement, question and what it asks for, of no family; else nothing."""
        if self.evaluation or self.rng.random() > _ANY_BUILD:
            return "", "", ""
        statement = builds.statement(self.rng)
        question, told = builds.question(self.rng, slots_in(statement), statement)
        return (statement, question, told) if question else self._any_build()

    def _fact(self, statement: str, question: str, slots: dict[str, str], told: str) -> Fact:
        return Fact(self._embellished(fill(statement, slots)), fill(question, slots), slots, statement, question, told)

    def filler(self) -> str:
        """A sentence that nobody asks for."""
        return fill(self.rng.choice(_FILLERS), self.slots({}))

    def slots(self, fixed: dict[str, str] | None = None) -> dict[str, str]:
        """Fill every slot that a template may name."""
        words, fixed = self.words, fixed or {}
        verb, verb2 = words.verb(), words.verb()
        slots = {
            "e": words.name(),
            "e2": words.name(),
            "a": words.thing(),
            "n": words.noun(),
            "n2": words.noun(),
            "thing": words.thing(),
            "adj": words.adjective(),
            "v": words.value(),
            "v2": words.value(),
            "q": words.amount(),
            "q2": words.amount(),
            "c": words.code(),
            "d": words.date(),
            "p": words.person(),
            "j": self.rng.choice(JOBS),
            "where": self.rng.choice(PLACES),
            "do": verb,
            "does": third_person(verb),
            "done": participle(verb),
            "doing": gerund(verb),
            "do2": verb2,
            "does2": third_person(verb2),
            "done2": participle(verb2),
            "doing2": gerund(verb2),
        }
        for known in self.rng.sample(self._topic, 2) if self._topic else ():
            slots.update(_of(known, {name for name in _OF_TOPIC if self.rng.random() < _FAMILIAR}))
        slots.update(fixed)
        slots["a_a"], slots["a_n"] = article(slots["a"]), article(slots["n"])
        if "{rest}" not in slots.get("rest", ""):
            inner = self.slots_of_rest()
            slots["rest"] = fill(self.rng.choice(_RESTS), inner, sentence=False)
        return slots

    def slots_of_rest(self) -> dict[str, str]:
        """Fill the slots of a subordinate clause."""
        words = self.words
        verb = words.verb()
        return {
            "n": words.noun(),
            "n2": words.noun(),
            "adj": words.adjective(),
            "done": participle(verb),
            "does": third_person(verb),
            "where": self.rng.choice(PLACES),
            "e": words.name(),
        }

    def _embellished(self, sentence: str) -> str:
        """The sentence, now and then with words before, after or within it that have nothing to do with the fact."""
        if self.rng.random() < 0.65:
            return sentence
        slots = self.slots({})
        if self.rng.random() < 0.5:
            before = fill(self.rng.choice(_BEFORE), slots)
            first, rest = sentence.split(" ", 1)
            sentence = before + (first.lower() if first in _LOWERED else first) + " " + rest
        if self.rng.random() < 0.5:
            sentence = sentence[:-1] + fill(self.rng.choice(_AFTER), slots, sentence=False) + "."
        if self.rng.random() < 0.3:
            words = sentence.split(" ")
            place = self.rng.randrange(1, len(words))
            words.insert(place, fill(self.rng.choice(_WITHIN), slots, sentence=False))
            sentence = " ".join(words)
        return sentence

    def _question(self, statement: str, questions: tuple[str, ...]) -> str:
        """A question that shares at least two slots with the statement, if there is one."""
        told = slots_in(statement)
        fitting = [question for question in questions if len(slots_in(question) & told) >= 2]
        return self.rng.choice(fitting or questions)


_FORMS_OF_ONE = {
    "a_a": "a",
    "a_n": "n",
    "does": "do",
    "done": "do",
    "doing": "do",
    "Do": "do",
    "Doing": "do",
    "Adj": "adj",
    "A_n": "n",
    "does2": "do2",
    "done2": "do2",
    "doing2": "do2",
}


def slots_in(template: str) -> set[str]:
    """The slots that a template names, forms of one word counted as one."""
    names = {part.split("}")[0] for part in template.split("{")[1:]}
    return {_FORMS_OF_ONE.get(name, name) for name in names}


def _of(slots: dict[str, str], names: set[str]) -> dict[str, str]:
    """The slots of these names, with all forms of their words."""
    return {name: value for name, value in slots.items() if _FORMS_OF_ONE.get(name, name) in names}


def fill(template: str, slots: dict[str, str], *, sentence: bool = True) -> str:
    """Fill a template; a sentence begins with a capital letter."""
    text = template.format(
        **slots,
        Do=capital(slots.get("do", "")),
        Doing=capital(slots.get("doing", "")),
        Adj=capital(slots.get("adj", "")),
        A_n=capital(slots.get("a_n", "")),
    )
    return capital(text) if sentence else text
