"""Whatever the logits, a forced call is valid, and a model that speaks freely is bound from where it opens a call."""

from __future__ import annotations

import json
from functools import lru_cache
from tempfile import TemporaryDirectory

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from langchain_accel._output import OutputSplitter, fold
from langchain_accel._tool_formats import FORMATS, Thinking, detect, detect_thinking, visible_tokens
from langchain_accel._tool_grammars import auto_grammar, forced_grammar
from langchain_accel.errors import InvalidRequest
from langchain_accel.runtime.constraints import Grammar, Grammars
from tests.tiny_checkpoint import make_tiny_checkpoint

pytest.importorskip("llguidance")
transformers = pytest.importorskip("transformers")

ENDS = [2, 4]  # </s> and <|im_end|> of the tiny tokenizer
THINK = Thinking()
HIDDEN = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"]  # special tokens: decoding skips them
SHOWN = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|other|>"]


def tool(name, parameters=None):
    described = {"name": name, "description": "d", "strict": True}
    return {"type": "function", "function": described | ({} if parameters is None else {"parameters": parameters})}


def of(properties, *optional, **more):
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


CLOSED = {"additionalProperties": False}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 99}
DIGITS = {"type": "array", "items": DIGIT, "maxItems": 2}
WORD = {"type": "string", "maxLength": 6}
TREE = of({"v": DIGIT, "kids": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/T"}}}, "kids")
CAT = of({"kind": {"const": "cat"}, "lives": DIGIT}, **CLOSED)
DOG = of({"kind": {"const": "dog"}, "name": WORD}, **CLOSED)
PETS = {"anyOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/D"}]}
TOOLS = [
    tool("get", of({"city": WORD | {"minLength": 1}, "unit": {"enum": ["celsius", "kelvin"]}}, "unit")),
    tool("get_weather", of({"days": DIGIT, "exact": {"type": "boolean"}})),
    tool("now"),
    tool("nothing", of({})),
    tool("plant", of({"tree": {"$ref": "#/$defs/T"}}, **{"$defs": {"T": TREE}})),
    tool("nest", of({"v": DIGIT, "inner": {"$ref": "#"}}, "inner")),
    tool("查询天气", of({"城市": {"enum": ["东京", "Zürich", 'a"\\\n/* # }']}})),
    tool("pet", of({"p": PETS}, "p", **{"$defs": {"C": CAT, "D": DOG}})),
    tool("union", of({"x": {"anyOf": [DIGIT, {"type": "null"}, WORD]}})),
    tool(
        "when", of({"date": {"type": "string", "format": "date"}, "id": WORD | {"pattern": "^[A-Z]{2}[0-9]$"}}, "date")
    ),
    tool("map", of({}, additionalProperties=DIGIT, maxProperties=2)),
    tool("matrix", of({"rows": {"type": "array", "maxItems": 2, "items": DIGITS}}, "rows")),
    tool("exact-1.0", of({"a": {"const": None}, "b": {"type": ["boolean", "null"]}}, "b")),
    tool("lenient", of({"x": WORD | {"format": "path"}}, **{"x-guidance": {"lenient": True}})),
    tool("alias", {"$ref": "#/definitions/A", "definitions": {"A": of({"n": DIGIT}, **CLOSED)}}),
]
SCHEMAS = {each["function"]["name"]: each["function"].get("parameters", of({})) for each in TOOLS}


@lru_cache
def tokenizer(rich):
    """The tiny tokenizer, `rich` with every marker as a token of its own."""
    with TemporaryDirectory() as folder:
        made = transformers.AutoTokenizer.from_pretrained(make_tiny_checkpoint(folder))
    if rich:
        made.add_tokens([AddedToken(text, special=True, normalized=False) for text in HIDDEN], special_tokens=True)
        made.add_tokens([AddedToken(text, special=False, normalized=False) for text in SHOWN])
    return made


@lru_cache
def grammars(rich):
    return Grammars(tokenizer(rich), len(tokenizer(rich)), ENDS)


@lru_cache
def closing(rich):
    """A bias that makes random answers short."""
    names = tokenizer(rich).convert_ids_to_tokens(list(range(len(tokenizer(rich)))))
    return np.array([1.5 * any(char in name for char in '"}]') for name in names])


def allowed(constraint, rich):
    logits = np.zeros(len(tokenizer(rich)), np.float32)
    constraint.mask(logits)
    return np.flatnonzero(logits == 0)


def draw(grammar, rich, seed, *, start=(), limit=600):
    """A random answer under a grammar, as text with all markers; one that was started ends as soon as it may."""
    constraint, random, tokens = grammars(rich).compile(grammar), np.random.default_rng(seed), []
    for token in start:
        assert token in allowed(constraint, rich)
        constraint.accept(token)
        tokens.append(token)
    while not constraint.finished and len(tokens) < limit:
        options = allowed(constraint, rich)
        token = int(options[np.argmax(random.gumbel(size=len(options)) + closing(rich)[options])])
        if token in ENDS or (start and ENDS[0] in options):
            break
        constraint.accept(token)
        tokens.append(token)
    assert len(tokens) < limit
    return tokenizer(rich).decode(tokens)


def split(tool_format, text, thinking=None, **options):
    splitter = OutputSplitter(tool_format, thinking, **options)
    return fold(splitter.push(text) + splitter.finish())


def check(folded, names=SCHEMAS):
    assert not folded.invalid_tool_calls
    for call in folded.tool_calls:
        assert call["name"] in names
        jsonschema.validate(call["args"], SCHEMAS[call["name"]], format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
def test_a_forced_call_is_valid_for_its_schema(tool_format, rich):
    """360 calls. Mutants: no `additionalProperties: false`; free white space; `$defs` dropped; markers spelled out."""
    for index, name in enumerate(SCHEMAS):
        grammar = forced_grammar(tool_format, TOOLS, [name], tokenizer(rich), parallel=False)
        for seed in range(3):
            folded = split(tool_format, draw(grammar, rich, 100 * index + seed))
            check(folded, [name])
            assert (len(folded.tool_calls), folded.text) == (1, "")
            if not SCHEMAS[name].get("additionalProperties") and "properties" in SCHEMAS[name]:
                assert folded.tool_calls[0]["args"].keys() <= SCHEMAS[name]["properties"].keys()


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
def test_any_tool_in_one_call_or_several(tool_format, rich):
    """Mutants: `parallel` ignored; only the first tool allowed; calls joined by what the splitter takes for text."""
    for parallel in (False, True):
        grammar = forced_grammar(tool_format, TOOLS, None, tokenizer(rich), parallel=parallel)
        answers = [split(tool_format, draw(grammar, rich, seed)) for seed in range(12)]
        for folded in answers:
            check(folded)
            assert folded.text == ""
        assert len({call["name"] for folded in answers for call in folded.tool_calls}) > 3
        several = parallel and tool_format.layout != "bare"
        assert any(len(folded.tool_calls) > 1 for folded in answers) == several


def test_calls_are_written_as_templates_write_them():
    """Mutants: compact separators; `arguments` for Llama 3; no line break in tags; tokens that are openers unknown."""
    written = {
        "hermes": '<tool_call>\n{"name": "nest", "arguments": %s}\n</tool_call>',
        "llama3": '{"name": "nest", "parameters": %s}',
        "mistral": '[TOOL_CALLS] [{"name": "nest", "arguments": %s}]',
        "mistral_args": "[TOOL_CALLS]nest[ARGS]%s",
    }
    for tool_format in FORMATS.values():
        for rich in (False, True):
            encoder = tokenizer(rich)
            text = written[tool_format.name] % json.dumps({"v": 7, "inner": {"v": 8}})
            for grammar in (
                forced_grammar(tool_format, TOOLS, ["nest"], encoder, parallel=False),
                auto_grammar(tool_format, TOOLS, encoder),
            ):
                constraint = grammars(rich).compile(grammar)
                for token in encoder.encode(text, add_special_tokens=False):
                    assert token in allowed(constraint, rich), (text, encoder.decode([token]))
                    constraint.accept(token)
                assert ENDS[0] in allowed(constraint, rich)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(FORMATS)), rich=st.booleans(), thinks=st.booleans(), data=st.data())
def test_free_text_is_free_until_a_call_is_opened(name, rich, thinks, data):
    """Mutants: added tokens not free; the answer may not end in reasoning; reasoning read as text."""
    encoder, thinking = tokenizer(rich), THINK if thinks else None
    constraint = grammars(rich).compile(auto_grammar(FORMATS[name], TOOLS[:2], encoder, thinking=thinking))
    anything = grammars(rich).compile(Grammar.regex("(?s:.*)"))  # what is text at all: UTF-8
    marks = {"<tool_call>", "</tool_call>"} if name == "hermes" else set()
    marks |= {"<think>", "</think>"} if thinks else set()
    added = encoder.added_tokens_decoder.items()
    free = {token for token, each in added if not each.special and each.content not in marks}
    text = data.draw(st.sampled_from(["", "<think>"] if thinks else [""]))
    text += data.draw(st.text(alphabet='abcé😀 <>[]}":/_tol\n', max_size=20))
    text += data.draw(st.sampled_from(["", "<tool_call"]))
    for token in [*encoder.encode(text, add_special_tokens=False), None]:
        letters = set(allowed(anything, rich))
        assert letters | (free if ENDS[0] in letters else set()) <= set(allowed(constraint, rich))
        if token is not None:
            constraint.accept(token)
            if token < 320:
                anything.accept(token)


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("tool_format", FORMATS.values(), ids=FORMATS)
def test_an_opened_call_is_valid(tool_format, rich):
    """Also where the marker is spelled in ordinary tokens. Mutants: no lazy rule; `bare_head` not bound."""
    encoder = tokenizer(rich)
    ids = lambda text: encoder.encode(text, add_special_tokens=False)
    spelled = [token for char in tool_format.opener for token in ids(char)]
    for thinking in (None, THINK):
        grammar = auto_grammar(tool_format, TOOLS, encoder, thinking=thinking)
        thought = [*ids("<think>\nmaybe "), *spelled, *ids(" </think>\n\n")] if thinking else []
        for seed, opener in enumerate([ids(tool_format.opener), spelled] * 4):
            folded = split(
                tool_format, draw(grammar, rich, seed, start=[*thought, *ids("So <I> say "), *opener]), thinking
            )
            assert folded.tool_calls
            check(folded)
            assert folded.text.startswith("So <I> say")
    if tool_format.layout == "bare":
        grammar = auto_grammar(tool_format, TOOLS, encoder)
        for head in ('{"name"', ' \n{ "name"', '{"type": "function", "name"'):
            folded = split(tool_format, draw(grammar, rich, 1, start=ids(head)))
            assert folded.tool_calls
            check(folded)


@pytest.mark.parametrize("rich", [False, True])
def test_open_reasoning_comes_before_a_call(rich):
    """Mutants: `reasoning` ignored; `reasoning_open` ignored."""
    encoder = tokenizer(rich)
    start = encoder.encode("hm <tool\n</think>\n\n", add_special_tokens=False)
    grammar = forced_grammar(FORMATS["hermes"], TOOLS, ["get"], encoder, parallel=False, reasoning=THINK)
    folded = split(FORMATS["hermes"], draw(grammar, rich, 1, start=start), THINK, reasoning_open=True)
    check(folded, ["get"])
    assert (folded.reasoning, folded.text, len(folded.tool_calls)) == ("hm <tool", "", 1)
    grammar = auto_grammar(FORMATS["hermes"], TOOLS, encoder, thinking=THINK, reasoning_open=True)
    start += encoder.encode("Yes <tool_call>", add_special_tokens=False)
    folded = split(FORMATS["hermes"], draw(grammar, rich, 1, start=start), THINK, reasoning_open=True)
    check(folded)
    assert folded.tool_calls


@pytest.mark.parametrize(
    ("tools", "names", "reason"),
    [
        (TOOLS, ["gte"], "no tool is named 'gte'; the tools are 'get', "),
        ([], None, "at least one tool"),
        ([tool("f"), tool("f")], None, "two tools are named 'f'"),
        ([{"name": "f"}], None, "a tool is {"),
        ([tool("[f]")], None, "a tool is {"),
        ([tool("f", {"type": "array"})], None, "tool 'f' must be of type object"),
        ([tool("f"), tool("g", of({"x": {"not": {}}}))], ["f"], r"tool 'g' cannot .*Unimplemented keys: \[\"not\"\]"),
        ([tool("g", of({"x": {"format": "path", "type": "string"}}))], None, "tool 'g' .*Unknown format: path"),
        ([tool("g", of({"x": {"$ref": "#/$defs/no"}}))], None, "tool 'g' cannot be enforced"),
        ([tool("g", of({"x": {"const": object()}}))], None, "tool 'g' .*JSON serializable"),
    ],
)
def test_tools_that_cannot_be_enforced_are_refused(tools, names, reason):
    """Mutants: llguidance not asked per tool; duplicates overwrite each other; unknown names dropped."""
    with pytest.raises(InvalidRequest, match=reason):
        forced_grammar(FORMATS["hermes"], tools, names, tokenizer(False), parallel=False)


@pytest.mark.parametrize(
    ("template", "name", "thinking"),
    [
        (None, None, None),
        ("{{ message.content }}", None, None),
        ('{{- \'<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}</think>', "hermes", "<think>"),
        ("{{- '<tool_call>\\n<function=' + call.name + '>' }}{{ call.arguments }}", None, None),
        ("{{- '<tool_call>' + tc.name }} <arg_key>{{ tc.arguments }}", None, None),
        ("{{- '{\"name\": \"' + tool_call.name + '\", ' }} {{- '<|python_tag|>' }}", "llama3", None),
        ('Respond in the format {"name": function name, "parameters": dictionary of argument name}', "llama3", None),
        ("{{- '[TOOL_CALLS] [' }} {{ '\"arguments\"' }}", "mistral", None),
        ("{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }} [THINK][/THINK]", "mistral_args", "[THINK]"),
    ],
)
def test_the_format_is_read_from_the_template(template, name, thinking):
    """Mutants: Qwen3-Coder's or GLM's calls taken for Hermes'; `[ARGS]` not looked for."""
    assert detect(template) == FORMATS.get(name)
    assert (detect_thinking(template) or Thinking("")).opener == (thinking or "")


def test_markers_are_found_where_they_matter():
    """Mutants: `visible_tokens` names every marker, hidden or not; `left_open` finds a closed one."""
    encoder = tokenizer(True)
    for name, hidden in {"hermes": [], "llama3": HIDDEN[3:], "mistral": HIDDEN[:1], "mistral_args": HIDDEN[:3]}.items():
        visible = visible_tokens(FORMATS[name], encoder, THINK)
        assert sorted(visible.values()) == sorted(hidden)
        assert all(encoder.convert_tokens_to_ids(text) == token for token, text in visible.items())
    assert visible_tokens(FORMATS["mistral"], tokenizer(False)) == visible_tokens(None, encoder) == {}
    assert THINK.left_open("<|im_start|>assistant\n<think>\n")
    assert not THINK.left_open("<think>\n\n</think>\n\n")
