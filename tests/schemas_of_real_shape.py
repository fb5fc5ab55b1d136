"""Fifty JSON schemas as applications write them, for tests of everything that follows a schema."""

from __future__ import annotations

from typing import Any


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """A closed object; every property is required unless `required` says which are."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _list(items: Any, **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **bounds}


STRING: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}
NUMBER: dict[str, Any] = {"type": "number"}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
NULL: dict[str, Any] = {"type": "null"}


def _format(name: str) -> dict[str, Any]:
    return {"type": "string", "format": name}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "no properties": _object(),
    "weather tool": _object(["city"], city=STRING, unit={"enum": ["celsius", "fahrenheit"]}),
    "search tool": _object(["q"], q={**STRING, "minLength": 1}, top_k={**INTEGER, "minimum": 1, "maximum": 50}),
    "calculator tool": _object(a=NUMBER, op={"enum": ["+", "-", "*", "/"]}, b=NUMBER),
    "pydantic optional": _object(["a"], a=INTEGER, b={"anyOf": [STRING, NULL], "default": None}),
    "person": _object(["name"], name=STRING, age={**INTEGER, "minimum": 0, "maximum": 150}, email=_format("email")),
    "title and description": {
        "title": "Joke",
        "description": "Joke to tell user.",
        **_object(["setup"], setup={**STRING, "description": "question"}, punchline=STRING, rating=INTEGER),
    },
    "classification": _object(label={"enum": ["positive", "neutral", "negative"]}, score={"type": "number"}),
    "routing": _object(step={"type": "string", "enum": ["poem", "story", "joke"], "description": "next step"}),
    "grade": _object(binary_score={**STRING, "enum": ["yes", "no"]}),
    "extraction": _object(people=_list(_object(["name"], name={"anyOf": [STRING, NULL]}, height=NUMBER))),
    "tags": _object(tags=_list(STRING, minItems=1, maxItems=5)),
    "nested": _object(a=_object(b=_object(c=_object(d=INTEGER)))),
    "matrix": _list(_list(NUMBER, minItems=2, maxItems=2), minItems=2, maxItems=2),
    "address": _object(
        ["street", "zip"], street={**STRING, "maxLength": 40}, zip={**STRING, "pattern": "^[0-9]{5}$"}, country=STRING
    ),
    "phone": _object(phone={**STRING, "pattern": r"^\+?[0-9]{1,3}-[0-9]{4,8}$"}),
    "slug": {**STRING, "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
    "ip": _object(v4=_format("ipv4")),
    "date": _object(on=_format("date")),
    "date-time": _object(at=_format("date-time")),
    "time span": _object(["start"], start=_format("time"), length=_format("duration")),
    "uuid": _object(id=_format("uuid")),
    "uri": _object(source=_format("uri")),
    "email": _object(to=_list(_format("email"), minItems=1)),
    "hostname": _object(host=_format("hostname"), port={**INTEGER, "minimum": 1, "maximum": 65535}),
    "const": _object(type={"const": "text"}, version={"const": 2}, flags={"const": [True, None]}),
    "mixed enum": _object(value={"enum": ["a", 1, 2.5, None, True, {"k": []}]}),
    "union by kind": _object(
        pet={
            "oneOf": [
                _object(kind={"const": "cat"}, lives={**INTEGER, "maximum": 9, "minimum": 0}),
                _object(kind={"const": "dog"}, good=BOOLEAN),
            ]
        }
    ),
    "any of scalars": {"anyOf": [STRING, INTEGER, BOOLEAN, NULL]},
    "type list": _object(value={"type": ["string", "null"]}, count={"type": ["integer", "null"]}),
    "all of": {"allOf": [_object(["a"], a=INTEGER, b=STRING), {"type": "object", "required": ["b"]}]},
    "tree": {
        **_object(root=_ref("node")),
        "$defs": {"node": _object(["value"], value=INTEGER, children=_list(_ref("node")))},
    },
    "linked list": {**_ref("cell"), "$defs": {"cell": _object(head=INTEGER, tail={"anyOf": [_ref("cell"), NULL]})}},
    "expression": {
        **_ref("expr"),
        "$defs": {
            "expr": {"anyOf": [NUMBER, _object(op={"enum": ["add", "mul"]}, args=_list(_ref("expr"), minItems=2))]}
        },
    },
    "json value": {
        **_object(value=_ref("json")),
        "$defs": {
            "json": {
                "anyOf": [
                    {"type": ["string", "number", "boolean", "null"]},
                    _list(_ref("json")),
                    {"type": "object", "additionalProperties": _ref("json")},
                ]
            }
        },
    },
    "mutual recursion": {
        **_ref("folder"),
        "$defs": {
            "folder": _object(["name"], name=STRING, entries=_list({"anyOf": [_ref("folder"), _ref("file")]})),
            "file": _object(file=STRING, link={"anyOf": [_ref("folder"), NULL]}),
        },
    },
    "comments": {
        "type": "object",
        "properties": {"text": STRING, "replies": _list({"$ref": "#"})},
        "required": ["text"],
        "additionalProperties": False,
    },
    "map of integers": {"type": "object", "additionalProperties": INTEGER},
    "map of lists": _object(groups={"type": "object", "additionalProperties": _list(STRING, minItems=1)}),
    "open object": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]},
    "tuple": {"type": "array", "prefixItems": [STRING, INTEGER, BOOLEAN], "items": False, "minItems": 3},
    "pair and rest": {"type": "array", "prefixItems": [NUMBER, NUMBER], "items": STRING, "minItems": 2},
    "unicode names": _object(名前=STRING, größe=NUMBER, emoji={"enum": ["😀", "🐍", "é"]}),
    "unicode enum": {"enum": ["да", "нет", "可能", "لا"]},
    "names to escape": _object(**{'a"b': INTEGER, "c\\d": BOOLEAN, "e\nf": NULL, "": STRING}),
    "long text": _object(text={**STRING, "minLength": 20, "maxLength": 60}),
    "bounded numbers": _object(
        p={**NUMBER, "minimum": 0, "maximum": 1},
        t={**INTEGER, "exclusiveMinimum": -10, "exclusiveMaximum": 10},
        even={**INTEGER, "multipleOf": 2},
    ),
    "invoice": _object(
        ["number", "lines"],
        number={**STRING, "pattern": "^INV-[0-9]{4}$"},
        lines=_list(
            _object(
                item={**STRING, "minLength": 1}, quantity={**INTEGER, "minimum": 1}, price={**NUMBER, "minimum": 0}
            ),
            minItems=1,
        ),
        paid=BOOLEAN,
    ),
    "plan": _object(
        ["steps", "status"],
        steps=_list(_object(["id"], id=INTEGER, needs=_list(INTEGER), tool={"enum": ["web", "code"]}), minItems=2),
        status={"enum": ["open", "done"]},
        due=_format("date"),
    ),
}
