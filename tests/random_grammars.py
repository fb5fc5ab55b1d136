"""Random grammars for tests: schemas nested, recursive, contradictory and broken; patterns, Lark grammars, choices."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from langchain_accel.runtime.constraints import Grammar

NAMES = ["a", "b", "name", "größe", "名前", "😀", 'q"q', "b\\s", "", "n\nl", "a b", "0"]
FORMATS = ["date", "date-time", "email", "uuid", "uri", "ipv4", "ipv6", "hostname", "duration", "no such format"]
PATTERNS = [
    "^[a-c]{2,5}$",
    "^(x|yy)+$",
    r"^[0-9]{3}-[0-9]{2}$",
    "^[^a]*z$",
    "^é+$",
    "^.{3,6}$",
    "^[A-Z][a-z]*( [A-Z][a-z]*)?$",
]
VALUES = [None, True, False, 0, -1, 2.5, "", "a", "é", "可能", 'x"y', [], {}, [1, "b"], {"k": None}]
ODD = [True, False, {}, [], {"type": "sting"}, {"type": 3}, {"not": {}}, {"$ref": "#/nowhere"}, {"enum": []}]
ODD += [{"pattern": "(", "type": "string"}, {"minimum": "a", "type": "integer"}, {"anyOf": []}, {"required": 1}]
ODD += [{"type": "string", "minLength": 5000}, {"properties": []}, {"allOf": [{"type": "null"}, {"const": 1}]}]


def schema(seed: int) -> Any:
    """A schema, often one that makes no sense."""
    return _Schemas(random.Random(seed)).whole()


def grammar(seed: int) -> Grammar:
    """A pattern, Lark grammar or choice; about one in ten is broken."""
    source = random.Random(seed)
    kind = source.choice(["regex", "lark", "choice"])
    if kind == "choice":
        words = ["".join(source.choices('abé\n"\\|😀 x', k=source.randrange(9))) for _ in range(source.randrange(5))]
        return Grammar.choice(words)
    if kind == "regex":
        return Grammar.regex(_pattern(source, 3))
    return Grammar.lark(_lark(source))


class _Schemas:
    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._defs = source.sample(["node", "leaf", "été"], source.randrange(3))

    def whole(self) -> Any:
        result = self._any(3)
        if self._defs and isinstance(result, dict):
            result["$defs"] = {name: self._any(2) for name in self._defs}
        return result

    def _any(self, depth: int) -> Any:
        pick = self._random
        kinds = [self._text, self._number, self._scalar, self._fixed, self._reference, self._odd]
        kinds += [self._object, self._object, self._array, self._union] if depth else []
        weights = [4, 4, 2, 3, 2, 0.4, 4, 4, 4, 3][: len(kinds)]
        return pick.choices(kinds, weights)[0](depth - 1)

    def _bounds(self, low: str, high: str, most: int) -> dict[str, int]:
        """Bounds that contradict each other once in a while."""
        pick = self._random
        bounds = {low: pick.randrange(most)} if pick.random() < 0.4 else {}
        if pick.random() < 0.4:
            bounds[high] = pick.randrange(bounds.get(low, 0), most + 4) if pick.random() < 0.95 else 0
        return bounds

    def _text(self, depth: int) -> Any:
        pick, result = self._random, {"type": "string"}
        way = pick.random()
        if way < 0.25:
            return result | {"format": pick.choice(FORMATS)}
        if way < 0.5:
            return result | {"pattern": pick.choice(PATTERNS)}
        return result | self._bounds("minLength", "maxLength", 12)

    def _number(self, depth: int) -> Any:
        pick = self._random
        result = {"type": pick.choice(["integer", "number"])}
        low, high = pick.choice(["minimum", "exclusiveMinimum"]), pick.choice(["maximum", "exclusiveMaximum"])
        result |= self._bounds(low, high, 50)
        return result | ({"multipleOf": pick.choice([2, 5])} if pick.random() < 0.1 else {})

    def _scalar(self, depth: int) -> Any:
        names = ["string", "integer", "number", "boolean", "null"]
        return {"type": self._random.sample(names, self._random.randint(1, 3))}

    def _fixed(self, depth: int) -> Any:
        pick = self._random
        return {"const": pick.choice(VALUES)} if pick.random() < 0.3 else {"enum": pick.choices(VALUES, k=3)}

    def _reference(self, depth: int) -> Any:
        places = [f"#/$defs/{name}" for name in self._defs] + ["#"]
        return {"$ref": self._random.choice(places)}

    def _odd(self, depth: int) -> Any:
        return deepcopy(self._random.choice(ODD))

    def _object(self, depth: int) -> Any:
        pick = self._random
        names = pick.sample(NAMES, pick.randrange(4))
        result: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        result["required"] = [name for name in names if pick.random() < 0.6]
        rest = pick.random()
        if rest < 0.6:
            result["additionalProperties"] = False
        elif rest < 0.8:
            result["additionalProperties"] = self._any(depth)
        return result

    def _array(self, depth: int) -> Any:
        pick, result = self._random, {"type": "array"}
        if pick.random() < 0.3:
            result["prefixItems"] = [self._any(depth) for _ in range(pick.randrange(1, 3))]
        result["items"] = self._any(depth) if pick.random() < 0.9 else False
        return result | self._bounds("minItems", "maxItems", 4)

    def _union(self, depth: int) -> Any:
        pick = self._random
        kind = pick.choices(["anyOf", "oneOf", "allOf"], [6, 1, 1])[0]
        return {kind: [self._any(depth) for _ in range(pick.randrange(1, 4))]}


def _pattern(pick: random.Random, depth: int) -> str:
    atoms = ["[a-z]", "[0-9]", "x", "é", "foo", r"[^\n]", " ", "</s>", r"\.", "你"]
    if not depth:
        return pick.choice(atoms)
    parts = [_pattern(pick, depth - 1) for _ in range(pick.randrange(1, 4))]
    if pick.random() < 0.01:
        parts.append("(")
    body = "|".join(parts) if pick.random() < 0.3 else "".join(parts)
    return f"({body}){pick.choice(['', '', '', '?', '*', '+', '{2,4}', '{3}'])}"


def _lark(pick: random.Random) -> str:
    rules = ["start", "one", "two"]
    names = [*rules, '"x"', '"(" one ")"', '"</end>"', "/[a-z]+/", r"/(.|\n)*/ <[2]>", "/[0-9]{2}/", '"你好"']
    names.append(f"%json {json.dumps(schema(pick.randrange(10**6)))}" if pick.random() < 0.3 else '"y"')
    lines = []
    for rule in rules:
        options = [" ".join(pick.choices(names[1:], k=pick.randrange(1, 4))) for _ in range(pick.randrange(1, 4))]
        lines.append(f"{rule}: {' | '.join(options)}")
    if pick.random() < 0.05:
        lines.append("three: missing")
    return "\n".join(lines)
