"""Conversations about tools: which one to call, with which arguments, when to call none, and what a result says."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

from tools.reader.facts import Facts
from tools.reader.reading import Conversation
from tools.reader.words import COMMON, Words, article, capital, gerund

NO_TOOL = "None of my tools can do that."

_REQUESTS = (
    "{Do} the {o} with {list}.",
    "Please {do} {a_o}: {list}.",
    "Can you {do} the {o} with {list}?",
    "I want to {do} {a_o}, {list}.",
    "{Do} {a_o} for me, {list}, please.",
    "I need {a_o}; {list}. Please {do} it.",
    "{do} {o} {list}",
    "Could you {do} the {o}? {List}.",
    "We have to {do} the {o} with {list}.",
    "Use {list} to {do} the {o}.",
    "With {list}, {do} the {o}.",
    "{Do} a new {o}. {List}.",
    "Next, {do} the {o}: {list}.",
    "Time to {do} the {o}. Take {list}.",
    "For this {o}, use {list}. {Do} it.",
    "Start to {do} {a_o} where {list}.",
    "My {o} has {list}. Will you {do} it?",
    "{List}. {Do} the {o}!",
    "{c} {do} the {o} {c} {list}.",
    "{C} {c} {do} {a_o} {c} {list}.",
    "{C} {do} this {o}, {c} {list}.",
    "{C} {c} {c} {do} {a_o} {g} {list}.",
)
_SHORT_REQUESTS = (
    "{Do} the {o} of {v}.",
    "{Do} the {o} for {v}, please.",
    "What is the {o} of {v}?",
    "Can you {do} the {o} at {v}?",
    "Please {do} {a_o} for {v}.",
    "Tell me the {o} in {v}.",
    "{do} {o} {v}",
    "How is the {o} in {v}?",
    "I want to {do} the {o} from {v}.",
    "Is there {a_o} in {v}?",
    "The {o} by {v}, please.",
    "{Do} me {a_o} with {v}.",
    "{v}: {do} the {o}.",
    "{C} {do} the {o} {c} {v}.",
    "{C} {c} the {o} {c} {v}.",
)
_PHRASES = (
    "{k} {v}",
    "the {k} {v}",
    "{k}: {v}",
    "the {k} is {v}",
    "{v} as the {k}",
    "{k} set to {v}",
    "{v} for the {k}",
    "{k} = {v}",
    "{k} ({v})",
    "{k} is now {v}",
    "{k} should be {v}",
    "{k} to be {v}",
    "a {k} of {v}",
    "with {k} {v}",
    "{k} - {v}",
    "whose {k} is {v}",
    "{k} {c} {v}",
    "{k} {c} {v}",
    "{c} {k} {v}",
    "{k} {c} {c} {v}",
    "{k} {g} {v}",
    "{k} {g} {v}",
    "{k} {w} {c} {v}",
    "{k} {w} {c} {v}",
    "{c} {k} {g} {v}",
)
_JOINING = tuple(word for word in COMMON if word != "as")  # which the evaluation puts before keys
_EVALUATION_REQUESTS = (
    "It is time to {do} {a_o} having {list}.",
    "Somebody should {do} this {o}: {list}.",
    "Go and {do} the {o}, given {list}.",
)
_EVALUATION_SHORT_REQUESTS = (
    "I am curious about the {o} of {v}.",
    "Would you {do} me the {o} near {v}?",
    "Let me know the {o} for {v}.",
)
_EVALUATION_PHRASES = ("{k} being {v}", "{k} equal to {v}", "as {k} {v}")
_EVALUATION_JOINING = frozenset(word for phrase in _EVALUATION_PHRASES for word in phrase.split())
_BARE = re.compile(r"true|false|0|[1-9]\d*(\.\d+)?|0\.\d+")
_UNRELATED = (
    "What is the {n} of {e}?",
    "Please {do} the {n} of {e}.",
    "Tell me about {e}.",
    "Who is {p}?",
    "Can you {do} {a_n}?",
    "How many {n}s does {e} have?",
    "Write a poem about the {n}.",
)
_RESULTS = (
    "The {o} is {v}.",
    "It is {v} in {e}.",
    "{e} has {v}.",
    "Done: {v} for {e}.",
    "The {o} of {e} comes to {v}.",
)
_SYSTEMS = (
    "",
    "",
    "",
    "You are a helpful assistant.",
    "Use the tools when they help.",
    "Call a tool, or answer plainly.",
)


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool: its name, its JSON type and how a request gives it."""

    name: str
    type: str
    value: str

    @property
    def literal(self) -> str:
        """The value as JSON."""
        return json.dumps(self.value, ensure_ascii=False) if self.type == "string" else self.value


@dataclass(frozen=True)
class Tool:
    """A tool and a request's values for its parameters."""

    verb: str
    object: str
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """As programmers write it."""
        return f"{self.verb} {self.object}".replace(" ", "_").lower()


class ToolCalls:
    """Makes conversations about tools.

    Args:
        rng: source of chance.
        evaluation: make what is kept for the evaluation.
    """

    def __init__(self, rng: random.Random, *, evaluation: bool = False) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self.words = Words(rng, evaluation=evaluation)
        self.facts = Facts(rng, evaluation=evaluation)

    def conversation(self, *, tools: int = 3, arguments: int = 3, fitting: float = 0.85) -> Conversation:
        """A request with tools at hand; see `conversations`."""
        return self.conversations(1, tools=tools, arguments=arguments, fitting=fitting)[0]

    def conversations(
        self, count: int, *, tools: int = 3, arguments: int = 3, fitting: float = 0.85
    ) -> list[Conversation]:
        """Requests with the same tools at hand, each with the call or the plain answer, and sometimes what came of it.

        Args:
            count: how many conversations.
            tools: most tools offered.
            arguments: most arguments of a tool.
            fitting: share of requests that a tool fits.
        """
        offered = [self._tool(arguments) for _ in range(self.rng.randint(1, tools))]
        if len({tool.name for tool in offered}) < len(offered):
            offered = offered[:1]
        system = self.rng.choice(_SYSTEMS)
        opening = [("system", system)] if system else []
        schemas = [self._schema(tool) for tool in offered]
        made: list[Conversation] = []
        for _ in range(count):
            fits = self.rng.random() <= fitting
            turns = self._fitting(offered, again=bool(made)) if fits else self._unrelated()
            made.append(Conversation(opening + turns, schemas, kind="tool" if fits else "no tool"))
        return made

    def _unrelated(self) -> list[tuple[str, str]]:
        request = capital(_fill(self.rng.choice(_UNRELATED), self.facts.slots({})))
        return [("user", request), ("assistant", NO_TOOL)]

    def _fitting(self, offered: list[Tool], *, again: bool) -> list[tuple[str, str]]:
        tool = self.rng.choice(offered)
        if again:
            tool = self._again(tool)
        turns = [("user", self._request(tool)), ("assistant", call(tool))]
        if self.rng.random() < 0.35:
            result, answer = self._result(tool)
            turns += [("tool", result), ("assistant", answer)]
        if self.rng.random() < 0.15:
            other = self._again(self.rng.choice(offered))
            turns += [("user", self._request(other)), ("assistant", call(other))]
        return turns

    def extraction(self, arguments: int = 4) -> Conversation:
        """A text and the JSON object that it gives for some keys."""
        tool = self._untyped(self._tool(arguments, least=1))
        keys = ", ".join(json.dumps(parameter.name, ensure_ascii=False) for parameter in tool.parameters)
        text = self._list(tool) if self.rng.random() < 0.5 else self._request(tool)
        ask = self.rng.choice(
            (
                f"Text: {text}\n\nReturn JSON with the keys {keys}.",
                f"Extract {keys} as JSON.\n\n{text}",
                f"{text}\n\nGive {keys} as a JSON object.",
            )
        )
        return Conversation([("user", ask), ("assistant", arguments_of(tool))], kind="extraction")

    def _untyped(self, tool: Tool) -> Tool:
        """The tool with the types that its values look like: nothing else tells them here."""
        parameters = (
            Parameter(one.name, "number" if _BARE.fullmatch(one.value) else "string", one.value)
            for one in tool.parameters
        )
        return Tool(tool.verb, tool.object, tuple(parameters))

    def _tool(self, most: int, least: int = 0) -> Tool:
        verb = self.rng.choice(("get", "find", "look up", "show")) if self.rng.random() < 0.25 else self.words.verb()
        parameters: list[Parameter] = []
        for _ in range(max(least, self.rng.choice((0, *range(1, most + 1), *range(1, most + 1))))):
            name = self.words.noun() if self.rng.random() < 0.75 else f"{self.words.noun()}_{self.words.noun()}"
            if name not in [parameter.name for parameter in parameters]:
                parameters.append(self._parameter(name))
        return Tool(verb, self.words.thing(), tuple(parameters))

    def _parameter(self, name: str) -> Parameter:
        shape = self.rng.random()
        if shape < 0.25:
            return Parameter(name, "integer", str(self.rng.randrange(1, 10 ** self.rng.randint(1, 4))))
        if shape < 0.3:
            number = f"{self.rng.randrange(100)}.{self.rng.randrange(1, 100)}"
            return Parameter(name, "number", number if self.evaluation else number.rstrip("0"))  # as JSON has it
        if shape < 0.34:
            return Parameter(name, "boolean", self.rng.choice(("true", "false")))
        value = self.words.name() if self.rng.random() < 0.5 else self.words.value()
        if not self.evaluation and self.rng.random() < 0.15:
            value = self.words.thing()  # small letters, which are rarer than hard
        return Parameter(name, "string", value)

    def _again(self, tool: Tool) -> Tool:
        """The same tool, asked for other values."""
        values = [self._parameter(parameter.name).value for parameter in tool.parameters]
        renewed = (
            Parameter(parameter.name, parameter.type, self._of_type(parameter.type, value))
            for parameter, value in zip(tool.parameters, values, strict=True)
        )
        return Tool(tool.verb, tool.object, tuple(renewed))

    def _of_type(self, type_: str, value: str) -> str:
        if type_ == "string":
            return value if not value[0].isdigit() else self.words.name()
        if type_ == "boolean":
            return self.rng.choice(("true", "false"))
        return str(self.rng.randrange(1, 1000))

    def _schema(self, tool: Tool) -> dict[str, object]:
        properties: dict[str, dict[str, str]] = {}
        for parameter in tool.parameters:
            properties[parameter.name] = {"type": parameter.type}
            if self.rng.random() < 0.3:
                properties[parameter.name]["description"] = capital(
                    f"the {parameter.name.replace('_', ' ')} of the {tool.object}"
                )
        shape: dict[str, object] = {"properties": properties, "required": list(properties), "type": "object"}
        if self.rng.random() < 0.4:
            shape = {"type": "object", "properties": properties, "required": list(properties)}
        elif not properties:
            shape = {"properties": {}, "type": "object"}
        description = capital(
            self.rng.choice(
                (f"{tool.verb} {article(tool.object)}", f"{tool.verb} the {tool.object}", f"{tool.verb} {tool.object}s")
            )
        )
        if self.rng.random() < 0.4:
            description += self.rng.choice(
                (".", f" for the {self.words.noun()}.", f" in {article(self.words.noun())}.")
            )
        function = {"name": tool.name, "description": description, "parameters": shape}
        return {"type": "function", "function": function}

    def _request(self, tool: Tool) -> str:
        slots = {"do": tool.verb, "o": tool.object, "a_o": article(tool.object)}
        if not tool.parameters:
            return capital(
                self.rng.choice(("{do} the {o}.", "Please {do} the {o}.", "{do} {a_o} now.")).format(**slots)
            )
        if len(tool.parameters) == 1 and self.rng.random() < 0.6:
            templates = _EVALUATION_SHORT_REQUESTS if self.evaluation else _SHORT_REQUESTS
            slots["v"] = tool.parameters[0].value
        else:
            templates = _EVALUATION_REQUESTS if self.evaluation else _REQUESTS
            slots["list"] = self._list(tool)
            slots["List"] = capital(slots["list"])
        return _fill(self._joined(self.rng.choice(templates)), slots)

    def _list(self, tool: Tool) -> str:
        phrases = _EVALUATION_PHRASES if self.evaluation else _PHRASES
        one = self.rng.choice(phrases) if self.rng.random() < 0.5 else None
        one = one and self._joined(one)
        parts = [
            (one or self._joined(self.rng.choice(phrases))).format(
                k=parameter.name.replace("_", " "), v=parameter.value
            )
            for parameter in tool.parameters
        ]
        if self.rng.random() < 0.25:
            self.rng.shuffle(parts)
        if len(parts) < 2:
            return parts[0]
        return ", ".join(parts[:-1]) + self.rng.choice((" and ", ", ", " and ")) + parts[-1]

    def _joined(self, template: str) -> str:
        """The template with any words that join: a value has to be found by where it stands.

        Common words for `{c}` and `{C}`, a verb's gerund for `{g}`, an adjective for `{w}`.
        """
        for place, word in (
            ("{c}", lambda: self.rng.choice(_JOINING)),
            ("{C}", lambda: capital(self.rng.choice(_JOINING))),
            ("{g}", lambda: gerund(self.words.verb())),
            ("{w}", self._describing),
        ):
            while place in template:
                template = template.replace(place, word(), 1)
        return template

    def _describing(self) -> str:
        """An adjective that the evaluation does not put between keys and values."""
        while (word := self.words.adjective()) in _EVALUATION_JOINING:
            pass
        return word

    def _result(self, tool: Tool) -> tuple[str, str]:
        """What a tool returns, and what to say of it."""
        value = self.words.value()
        if self.rng.random() < 0.4:
            return value, f"The answer is {value}."
        sentence = capital(self.rng.choice(_RESULTS).format(o=tool.object, v=value, e=self.words.name()))
        return sentence, sentence


def arguments_of(tool: Tool) -> str:
    """The arguments of a call as JSON."""
    return (
        "{" + ", ".join(f"{json.dumps(one.name, ensure_ascii=False)}: {one.literal}" for one in tool.parameters) + "}"
    )


def call(tool: Tool) -> str:
    """A call as the chat template writes it."""
    name = json.dumps(tool.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments_of(tool)}}}\n</tool_call>'


def _fill(template: str, slots: dict[str, str]) -> str:
    return template.format(**slots, Do=capital(slots["do"]))
