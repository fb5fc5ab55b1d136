"""Conversations about documents: passages, questions that they answer, and questions that they do not."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, field

from tools.reader.facts import Fact, Facts
from tools.reader.words import COMMON, capital

UNKNOWN = "I don't know."

_SYSTEMS = (
    "",
    "",
    "Answer from the passages.",
    "You answer questions. Use only the passages that are given.",
    "Use the context to answer. If it does not hold the answer, say: I don't know.",
    "You are a careful reader. Quote the sentence that holds the answer.",
    "Quote numbers, codes and names exactly. If the passages do not hold the answer, say: I don't know.",
    "You help the staff of {e}. Answer with the words of the text.",
)
_PROMPTS = (
    "Passages:\n{context}\n\nQuestion: {question}",
    "Context:\n{context}\n\nQuestion: {question}",
    "{context}\n\n{question}",
    "Text: {context}\n\nQ: {question}",
    "Read this.\n\n{context}\n\n{question}",
    "{context}\n\nQuestion: {question}\n\nAnswer:",
    "Documents:\n\n{context}\n\n---\n{question}",
    "{context}\nQuestion: {question}\nAnswer:",
)
_FRAMES = (
    "What about the {one} and the {two}?",
    "{one} {two}?",
    "Which {one} is {two}?",
    "How is the {one} of the {two}?",
    "When does the {one} {two}?",
    "Is there any {one} for {two}?",
    "What {one} does the {two} have?",
    "How much {one} can a {two} make?",
    "Which {one} does the {two} show?",
    "For how long is {one} under {two}?",
    "Who or what is {one}, {two}?",
)
_POLITE = ("Please tell me: ", "Hi! ", "One more thing. ", "And ", "Thanks. ", "I wonder, ")
_VARIANTS = 0.2
"""Share of sentences that say of another thing what an earlier one of the passage says."""
_DISTRACTORS, _STRANGE = 0.4, 0.4
"""Share of facts that another sentence shares words of their question with; of questions with words more."""
_TOPICS, _RUNS = 0.6, 0.5
"""Share of documents that speak of few things; there, of facts that say the same of other things in a row."""
_COMMON = frozenset(COMMON)
_LABELS = (
    "Passages",
    "Context",
    "Text",
    "Documents",
    "Notes",
    "Information",
    "Excerpts",
    "Sources",
    "Pages",
    "Facts",
    "Article",
    "Background",
    "Material",
    "Handbook",
    "Snippets",
    "Knowledge",
    "Records",
    "Reference",
    "Search results",
    "Manual",
)
_ASKING = (
    "Question",
    "Q",
    "Query",
    "Request",
    "Customer",
    "Asked",
    "Problem",
    "Please answer",
    "Task",
    "They ask",
    "Now",
)
_OPENINGS = (
    "{one}:\n{{context}}",
    "{one}: {{context}}",
    "### {one}\n{{context}}",
    "[{one}]\n{{context}}",
    "# {one}\n\n{{context}}",
    "<{tag}>\n{{context}}\n</{tag}>",
    "{{context}}",
    "Read the {tag} first.\n\n{{context}}",
    "{one}\n\n{{context}}",
    "{one}:\n\n{{context}}\n\nEnd of {tag}.",
    "---\n{{context}}\n---",
)
_ENDINGS = (
    "{two}: {{question}}",
    "{two}:\n{{question}}",
    "### {two}\n{{question}}",
    "{{question}}",
    "<{tag2}>{{question}}</{tag2}>",
    "{two}: {{question}}\nAnswer:",
    "{two}: {{question}}\n\nAnswer:",
    "[{two}] {{question}}",
    "{{question}} ({two})",
)
_EVALUATION_PROMPTS = (
    "Here is what we know:\n{context}\n\nAnswer this: {question}",
    "<documents>\n{context}\n</documents>\n\nUser question: {question}",
)


@dataclass
class Conversation:
    """Turns of a chat, `(role, text)`, and the tools offered; training learns the assistant's turns.

    Attributes:
        turns: what was said, in order.
        tools: JSON schemas of the tools, in OpenAI's form.
        kind: what is asked for, for the evaluation's table.
    """

    turns: list[tuple[str, str]]
    tools: list[dict[str, object]] = field(default_factory=list)
    kind: str = "reading"


@dataclass(frozen=True)
class Size:
    """How much there is to read.

    Attributes:
        passages: least and most passages.
        sentences: least and most sentences of a passage.
        questions: least and most questions.
    """

    passages: tuple[int, int] = (1, 4)
    sentences: tuple[int, int] = (2, 6)
    questions: tuple[int, int] = (1, 4)


class Reading:
    """Makes conversations about documents.

    Args:
        rng: source of chance.
        evaluation: make what is kept for the evaluation.
    """

    def __init__(self, rng: random.Random, *, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self.facts = Facts(rng, evaluation=evaluation)

    def conversation(self, size: Size, *, unanswerable: float = 0.16, distractors: int = 0) -> Conversation:
        """A document and questions about it; see `conversations`."""
        return self.conversations(size, 1, unanswerable=unanswerable, distractors=distractors)[0]

    def conversations(
        self, size: Size, most: int, *, unanswerable: float = 0.16, distractors: int = 0
    ) -> list[Conversation]:
        """Conversations about one document, none of which asks what another one asks.

        Args:
            size: how much there is to read, and how many questions a conversation asks.
            most: conversations at most; there are fewer where the document holds too few facts.
            unanswerable: share of questions that the document does not answer.
            distractors: further passages that nobody asks about.
        """
        topic = not self.evaluation and self.rng.random() < _TOPICS
        with self.facts.topic() if topic else nullcontext():
            passages = [self._passage(size, topic=topic) for _ in range(self.rng.randint(*size.passages))]
        known = [fact for _, sentences in passages for fact in sentences if isinstance(fact, Fact)]
        others = [stems(_text(sentence)) for _, sentences in passages for sentence in sentences] if topic else []
        for fact in known:
            if not self.evaluation and self.rng.random() < _DISTRACTORS and (other := self.facts.distractor(fact)):
                _, sentences = self.rng.choice(passages)
                sentences.insert(self.rng.randint(0, len(sentences)), other)
        passages += [self._passage(size, topic=False) for _ in range(distractors)]
        if distractors:
            self.rng.shuffle(passages)
        text = self._layout(passages)
        system = self.rng.choice(_SYSTEMS).format(e=self.facts.words.name())
        prompt = self._prompt()
        left = self.rng.sample(known, len(known))
        made: list[Conversation] = []
        while left and len(made) < most:
            count = self.rng.randint(*size.questions)
            asked: list[tuple[str, str]] = []
            for fact in left[:count]:
                if self.rng.random() < unanswerable:
                    asked.append((self._unanswerable(known, text), UNKNOWN))
                elif question := self._clear(fact, others):
                    asked.append((question, fact.sentence))
            if asked:
                made.append(self._chat(system, prompt, text, asked))
            left = left[count:]
        return made

    def _prompt(self) -> str:
        """How text and question are put to the reader: as people often do, or with labels of any words."""
        if self.evaluation:
            return self.rng.choice(_EVALUATION_PROMPTS)
        if self.rng.random() < 0.4:
            return self.rng.choice(_PROMPTS)
        one, two = (
            self.rng.choice(known) if self.rng.random() < 0.6 else capital(self.facts.words.thing())
            for known in (_LABELS, _ASKING)
        )
        labels = {"one": one, "two": two, "tag": one.lower().replace(" ", "_"), "tag2": two.lower().replace(" ", "_")}
        frame = self.rng.choice(_OPENINGS) + self.rng.choice(("\n\n", "\n\n", "\n")) + self.rng.choice(_ENDINGS)
        prompt = frame.format(**labels)
        return self._prompt() if prompt in _EVALUATION_PROMPTS else prompt

    def _passage(self, size: Size, *, topic: bool) -> tuple[str, list[Fact | str]]:
        """A title and sentences; facts of one passage like to share what they speak of."""
        subject = self.facts.slots({})
        title = capital(f"{subject['e']} {subject['thing']}") if self.rng.random() < 0.5 else ""
        sentences: list[Fact | str] = []
        for _ in range(self.rng.randint(*size.sentences)):
            if self.rng.random() < 0.2:
                sentences.append(self.facts.filler())
                continue
            fixed: dict[str, str] = {}
            earlier = [fact for fact in sentences if isinstance(fact, Fact)]
            if earlier and not self.evaluation and self.rng.random() < _VARIANTS:
                sentences.append(self.facts.variant(self.rng.choice(earlier)))
                continue
            shape = self.rng.random()
            if shape < 0.5:
                fixed["e"] = subject["e"]
            elif shape < 0.7 and earlier:
                near = self.rng.choice(earlier)
                fixed.update(
                    {name: near.slots[name] for name in self.rng.choice((("a",), ("a", "n"), ("n", "q"), ("j",)))}
                )
            elif shape < 0.8:
                fixed["a"] = subject["a"]
            sentences.append(fact := self.facts.fact(fixed))
            while topic and self.rng.random() < _RUNS:
                sentences.append(self.facts.variant(fact))
        if not any(isinstance(sentence, Fact) for sentence in sentences):
            sentences.append(self.facts.fact({"e": subject["e"]}))
        return title, sentences

    def _layout(self, passages: list[tuple[str, list[Fact | str]]]) -> str:
        style = self.rng.randrange(5)
        blocks = []
        for index, (title, sentences) in enumerate(passages):
            body = ""
            for sentence in sentences:
                gap = "" if not body else "\n" if self.rng.random() < 0.03 else " "
                body += gap + _text(sentence)
            if style == 0 and title:
                body = f"[{title}] {body}"
            elif style == 1:
                body = f"[{index + 1}] {body}"
            elif style == 2 and title:
                body = f"# {title}\n\n{body}"
            elif style == 3:
                body = f"- {body}"
            blocks.append(body)
        return self.rng.choice(("\n\n", "\n\n", "\n", "\n---\n")).join(blocks)

    def _unanswerable(self, known: list[Fact], text: str) -> str:
        """A question about something in the text that the text does not tell, or about nothing in it."""
        while True:
            shape = self.rng.random()
            near = self.rng.choice(known)
            fixed: dict[str, str] = {}
            if shape < 0.6:
                fixed["e"] = near.slots["e"]
            elif shape < 0.8:
                fixed["a"] = near.slots["a"]
            fact = self.facts.fact(fixed)
            other = [fact.slots[name] for name in ("e", "a") if name not in fixed]
            verb = fact.slots["do"]
            if not any(word in text for word in other) and verb not in text:
                return self._reworded(fact)

    def _clear(self, fact: Fact, others: list[set[str]]) -> str:
        """A question that shares more words with its fact than with any other sentence; nothing if none was found."""
        own = stems(fact.sentence)
        for _ in range(4):
            question = self._reworded(fact)
            asked = stems(question)
            if all(len(asked & own) > len(asked & other) for other in others if other != own):
                return question
        return ""

    def _reworded(self, fact: Fact) -> str:
        """The question as somebody may type it: politely, carelessly, or just the words that matter."""
        question = fact.question
        shape = self.rng.random()
        if not self.evaluation and shape < 0.2:
            question = self._keywords(fact.sentence) or question
        elif shape < 0.25:
            question = question.lower()
        elif shape < 0.28:
            question = question.rstrip("?.")
        if not self.evaluation and self.rng.random() < _STRANGE:
            question = self._loose(question)
        if not self.evaluation and self.rng.random() < 0.1:
            question = self.rng.choice(_POLITE) + question
        return question

    def _keywords(self, sentence: str) -> str:
        """A question of a few words of the sentence, in another order or form."""
        words = [word.strip(".,;:()\"'") for word in sentence.split()]
        words = [word for word in words if word.lower() not in _COMMON and len(word) > 1]
        if len(words) < 3:
            return ""
        kept = sorted(self.rng.sample(range(len(words)), self.rng.randint(3, min(5, len(words)))))
        if self.rng.random() < 0.5:
            self.rng.shuffle(kept)
        chosen = [self._inflected(words[place]) for place in kept]
        middle = self.rng.randrange(1, len(chosen))
        return self.rng.choice(_FRAMES).format(one=" ".join(chosen[:middle]), two=" ".join(chosen[middle:]))

    def _loose(self, question: str) -> str:
        """The question with other forms of some words, or with up to three more that the text need not hold."""
        words = question.split()
        words = [word if word in _COMMON or not word.islower() else self._inflected(word) for word in words]
        for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
            more = self.rng.choice((self.facts.words.noun, self.facts.words.adjective, self.facts.words.verb))()
            words.insert(self.rng.randrange(1, len(words) + 1), more)
        return " ".join(words)

    def _inflected(self, word: str) -> str:
        """Now and then another form of a word: "calibrated" for "calibration", "copy" for "copies"."""
        if len(word) < 5 or not word.isalpha() or self.rng.random() < 0.7:
            return word
        if word.endswith("ies"):
            return word.removesuffix("ies") + "y"
        for ending in ("ation", "ing", "ed", "es", "s", "e"):
            if word.endswith(ending) and len(word) - len(ending) > 3:
                word = word.removesuffix(ending)
                break
        if word.endswith("y"):
            return word.removesuffix("y") + "ies"
        return word + self.rng.choice(("", "", "ed", "ing", "s", "s", "ation", "er"))

    def _chat(self, system: str, prompt: str, text: str, asked: list[tuple[str, str]]) -> Conversation:
        turns = [("system", system)] if system else []
        for index, (question, answer) in enumerate(asked):
            turns.append(("user", question if index else prompt.format(context=text, question=question)))
            turns.append(("assistant", answer))
        return Conversation(turns)


def _text(sentence: Fact | str) -> str:
    return sentence.sentence if isinstance(sentence, Fact) else sentence


def stems(text: str) -> set[str]:
    """The beginnings of the words of a text that carry meaning."""
    words = (word.strip(".,;:()\"'?!") for word in text.lower().split())
    return {word[:5] for word in words if word not in _COMMON and len(word) > 1}
