"""What a splitter makes of an answer does not depend on its cuts, and is what LangChain reads in its pieces."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk

from langchain_accel import _output
from langchain_accel._output import OutputSplitter, ReasoningPiece, TextPiece, ToolCallPiece, fold, merged
from langchain_accel._tool_formats import FORMATS, Thinking
from langchain_accel.errors import AccelError

HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS = (FORMATS[name] for name in ("hermes", "llama3", "mistral", "mistral_args"))
THINK = Thinking()
formats = st.sampled_from([None, *FORMATS.values()])


@pytest.fixture(autouse=True)
def numbered(monkeypatch):
    """Ids are random; here they are all the same."""
    monkeypatch.setattr(_output, "uuid4", lambda: type("Uuid", (), {"hex": "0123456789abcdef"}))


def split(tool_format, chunks, thinking=None, **options):
    splitter = OutputSplitter(tool_format, thinking, **options)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)]
    return [*pieces, *splitter.finish()]


def answer(tool_format, text, thinking=None, **options):
    return fold(split(tool_format, text, thinking, **options))


def calls(folded):
    return [(call["name"], call["args"]) for call in folded.tool_calls]


def invalid(folded):
    return [(call["name"], call["args"]) for call in folded.invalid_tool_calls]


def render(tool_format, wanted, spaced=True):  # noqa: FBT002
    """The calls as the templates of the format write them."""
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=None if spaced else (",", ":"))
    match tool_format.name:
        case "hermes":
            bodies = [dump({"name": name, "arguments": args}) for name, args in wanted]
            return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
        case "llama3":
            return "; ".join(dump({"name": name, "parameters": args}) for name, args in wanted)
        case "mistral":
            return "[TOOL_CALLS] " + dump([{"name": name, "arguments": args} for name, args in wanted])
        case "mistral_args":
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(args)}" for name, args in wanted)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["</tool_call>", '"}', "\\", "[ARGS]", '{"name"', "<think>", "; ", "é你😀", "\n"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
wanted_calls = st.lists(
    st.tuples(st.from_regex(r"[a-zA-Z_][\w-]{0,8}", fullmatch=True), st.dictionaries(words, values, max_size=3)),
    min_size=1,
    max_size=3,
)
FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<tool_cal", "</tool_call", "<|python_tag|>", "<|python", "[TOOL_CALLS]", "[TOOL"),
    *("[ARGS]", "[CALL_ID]", "<think>", "</think>", "<thin", "</", "<", "[", "{", "}", "]", '"', "\\", ",", ":", "; "),
    *(
        "\n",
        " ",
        "x",
        "é",
        "f",
        "<t",
        "<to",
        "[T",
        "<|p",
        '{"name": "f", ',
        '"arguments": ',
        '"parameters": ',
        '{"a": [1, "b"]}',
        '{"name"',
    ),
    *('"type": "function", ', '"type": "person", ', '{"a": "', "name", "null", "12"),
]
noise = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def cut(draw, text):
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@settings(max_examples=250, deadline=None)
@given(tool_format=formats, thinking=st.sampled_from([None, THINK]), is_open=st.booleans(), text=noise, data=st.data())
def test_pieces_do_not_depend_on_how_the_text_is_cut(tool_format, thinking, is_open, text, data):
    """Mutant: `push` sends its text as a whole."""
    expected = merged(split(tool_format, [text], thinking, reasoning_open=is_open))
    assert merged(split(tool_format, cut(data.draw, text), thinking, reasoning_open=is_open)) == expected
    assert merged(split(tool_format, text, thinking, reasoning_open=is_open)) == expected


@settings(max_examples=250, deadline=None)
@given(tool_format=formats, thinking=st.sampled_from([None, THINK]), text=noise, data=st.data())
def test_langchain_reads_the_same_calls_in_the_chunks(tool_format, thinking, text, data):
    """Mutants: no spoiler; the opener left out of a nameless call."""
    pieces = split(tool_format, cut(data.draw, text), thinking)
    message = AIMessageChunk(content="")
    for piece in pieces:
        if isinstance(piece, TextPiece):
            message += AIMessageChunk(content=piece.text)
        elif isinstance(piece, ToolCallPiece):
            chunk = {"name": piece.name, "args": piece.arguments, "id": piece.id, "index": piece.index}
            message += AIMessageChunk(content="", tool_call_chunks=[{**chunk, "type": "tool_call_chunk"}])
    folded = fold(pieces)
    assert message.content == folded.text
    assert message.tool_calls == folded.tool_calls
    assert message.invalid_tool_calls == folded.invalid_tool_calls


@settings(max_examples=200, deadline=None)
@given(tool_format=formats.filter(bool), wanted=wanted_calls, spaced=st.booleans(), data=st.data())
def test_calls_come_back_as_they_were_rendered(tool_format, wanted, spaced, data):
    """Mutants: brackets counted inside strings; an escaped quote ends a string; a second call is broken."""
    pieces = split(tool_format, cut(data.draw, render(tool_format, wanted, spaced)))
    assert calls(fold(pieces)) == wanted
    assert fold(pieces).text == "" and not invalid(fold(pieces))  # noqa: PT018
    starts = [piece for piece in pieces if piece.name is not None]
    assert [piece.index for piece in starts] == list(range(len(wanted)))
    assert all(piece.id is None for piece in pieces if piece not in starts)
    dump = {True: None, False: (",", ":")}[spaced]
    verbatim = [json.dumps(arguments, ensure_ascii=False, separators=dump) for _, arguments in wanted]
    assert [piece.arguments for piece in merged(pieces)] == verbatim


@settings(max_examples=200, deadline=None)
@given(tool_format=formats.filter(bool), wanted=wanted_calls, data=st.data())
def test_a_call_that_is_cut_off_is_never_taken_for_a_whole_one(tool_format, wanted, data):
    """Mutants: the spoiler closes the right bracket; `complete` not asked (a whole call without its end is invalid)."""
    text = render(tool_format, wanted)
    end = data.draw(st.integers(0, len(text)))
    folded = answer(tool_format, text[:end])
    whole = calls(folded)
    assert whole == wanted[: len(whole)]
    assert len(folded.invalid_tool_calls) <= 1
    frame = {"hermes": "}\n</tool_call>", "llama3": "}", "mistral": "}]", "mistral_args": ""}[tool_format.name]
    ends = [len(render(tool_format, wanted[: count + 1])) - len(frame) for count in range(len(wanted))]
    assert len(whole) == sum(place <= end for place in ends)


@settings(max_examples=200, deadline=None)
@given(tool_format=formats, text=st.lists(st.sampled_from([each for each in FRAGMENTS if len(each) < 4])).map("".join))
def test_text_that_resembles_a_marker_is_passed_on(tool_format, text):
    """Mutants: `_until` drops what it held at the end; leading white space stripped."""
    assert merged(split(tool_format, text, THINK)) == ([TextPiece(text)] if text else [])


@settings(max_examples=200, deadline=None)
@given(tool_format=formats.filter(bool), text=noise)
def test_no_marker_is_shown(tool_format, text):
    """Mutants: stray end markers are text; `_until` passes on all it held at a mismatch."""
    text = "<" + text.replace("<think>", "<<think>")
    markers = [tool_format.opener, tool_format.closer or tool_format.opener, THINK.opener, THINK.closer]
    for piece in split(tool_format, [text], THINK):
        if isinstance(piece, TextPiece):
            assert not any(marker in piece.text for marker in markers)
        if isinstance(piece, ReasoningPiece):
            assert THINK.closer not in piece.text


@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL, MISTRAL_ARGS], ids=lambda each: each.name)
def test_text_around_calls_is_kept_and_the_space_at_markers_is_not(tool_format):
    """Mutants: no `edge` before a call; white space after a call always dropped."""
    one, two = render(tool_format, [("f", {"a": 1})]), render(tool_format, [("g", {})])
    folded = answer(tool_format, f" I look.\n\n{one}\n{two} \nDone. ")
    assert folded.text == " I look. \nDone. "
    assert calls(folded) == [("f", {"a": 1}), ("g", {})]
    assert answer(tool_format, f"\n\n{one}\n").text == ""
    assert answer(tool_format, " \n").text == " \n"


def test_reasoning_is_told_apart():
    """Mutants: `reasoning_open` ignored; `_reason` ends at a call's marker; its white space kept; `shown` not asked."""
    call = render(HERMES, [("f", {})])
    assert split(HERMES, [f"<think>\nI could {call}\n</think>\n\nYes."], THINK) == [
        ReasoningPiece(f"I could {call}"),
        TextPiece("Yes."),
    ]
    folded = answer(LLAMA3, f"hm </think>\n{render(LLAMA3, [('f', {})])}", THINK, reasoning_open=True)
    assert (folded.reasoning, folded.text, calls(folded)) == ("hm", "", [("f", {})])
    late = f"So <think>hm</think> {render(LLAMA3, [('f', {})])}"  # what is shown before makes it no call
    assert answer(LLAMA3, late, THINK).text.startswith('So {"name"')
    assert split(None, ["a <think>b</think> c"], None, reasoning_open=True) == [TextPiece("a <think>b</think> c")]
    assert split(None, ["a [THINK]b"], Thinking("[THINK]", "[/THINK]")) == [TextPiece("a"), ReasoningPiece("b")]


def test_everything_is_passed_on_as_soon_as_it_is_certain():
    """Mutant: arguments handed on when complete."""
    splitter = OutputSplitter(HERMES, THINK)
    assert splitter.push("Let me look <to") == [TextPiece("Let me look")]
    assert splitter.push("ast> ") == [TextPiece(" <toast>")]
    assert splitter.push('<tool_call>\n{"name": "f", "arg') == []
    assert splitter.push('uments": {"ci') == [ToolCallPiece(0, "call_0123456789ab", "f", '{"ci')]
    assert splitter.push('ty": "Par') == [ToolCallPiece(0, None, None, 'ty": "Par')]
    assert splitter.push('is"}}\n</tool_call>') == [ToolCallPiece(0, None, None, 'is"}')]
    assert splitter.finish() == splitter.finish() == []
    with pytest.raises(AccelError, match="has ended"):
        splitter.push("x")


def test_ids_are_those_that_the_templates_take():
    """Mutant: one form of id for all formats."""
    for tool_format, form in [(HERMES, r"call_[0-9a-f]{12}"), (LLAMA3, r"call_[0-9a-f]{12}"), (MISTRAL, r"\w{9}")]:
        assert re.fullmatch(form, answer(tool_format, render(tool_format, [("f", {})])).tool_calls[0]["id"])


@pytest.mark.parametrize(
    ("tool_format", "text", "expected"),
    [
        (HERMES, '<tool_call>{"arguments": {"a": {}}, "id": 7, "name": "f"}</tool_call>', [("f", {"a": {}})]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', [("f", {})]),
        (HERMES, '<tool_call>{"name": "f", "parameters": {"a": 1}}', [("f", {"a": 1})]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', [("f", {"a": 1})]),
        (LLAMA3, ' { "type":"function", "name" : "f", "parameters": {} }', [("f", {})]),
        (LLAMA3, "<|python_tag|>" + '{"name": "f", "parameters": {}}\n' * 2, [("f", {})] * 2),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"},]', [("f", {})]),
        (MISTRAL, '[TOOL_CALLS]{"name": "f", "arguments": {}}', [("f", {})]),
        (MISTRAL_ARGS, '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g{}', [("f", {"a": 1}), ("g", {})]),
    ],
)
def test_variants_that_models_write_are_understood(tool_format, text, expected):
    """Mutants: arguments before the name are lost; only the format's own key is known; no arguments are no JSON."""
    assert calls(answer(tool_format, text)) == expected
    assert not answer(tool_format, text).text


@pytest.mark.parametrize(
    ("tool_format", "text", "name", "arguments", "shown"),
    [
        (HERMES, "<tool_call>hello</tool_call>x", None, "<tool_call>hello</tool_call>", "x"),
        (HERMES, '<tool_call>{"a": 1}</tool_call>', None, '<tool_call>{"a": 1}</tool_call>', ""),
        (HERMES, '<tool_call>{"na', None, '<tool_call>{"na', ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": ', "f", "]", ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x', "f", '{"a": "x"]', ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\', "f", '{"a": "\\\\"]', ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1}}}</tool_call>x', "f", '{"a": [1}}}]', "x"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>x', "f", '{"a": 1,}', "x"),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>x', "f", '"{}"', "x"),
        (LLAMA3, "<|python_tag|>print(1)", None, "<|python_tag|>print(1)", ""),
        (LLAMA3, '{"name": "f", "parameters": {"a": [', "f", '{"a": [}', ""),
        (MISTRAL, '[TOOL_CALLS] [{"x": 1}]', None, '[TOOL_CALLS]{"x": 1}]', ""),
        (MISTRAL_ARGS, "[TOOL_CALLS]I will[ARGS]{}", None, "[TOOL_CALLS]I will[ARGS]{}", ""),
    ],
)
def test_a_broken_call_is_invalid(tool_format, text, name, arguments, shown):
    """Mutants: the spoiler closes no string, or forgets an escape; `feed` after `sink` (a character twice)."""
    folded = answer(tool_format, text)
    assert (invalid(folded), folded.tool_calls, folded.text) == ([(name, arguments)], [], shown)


def test_a_broken_call_ends_where_the_next_one_begins():
    """Mutant: the next call's opener stays in the text of the broken one."""
    folded = answer(HERMES, "<tool_call>x" + render(HERMES, [("f", {})]))
    assert (invalid(folded), calls(folded)) == ([(None, "<tool_call>x")], [("f", {})])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        '{"name": "f", "para',
        '{"type": "person", "name": "Ada", "parameters": {}}',
        '{"answer": 42}; {"name": "f", "parameters": {}}',
        'Sure: {"name": "f", "parameters": {}}',
        ' {"name": 3, "parameters": {}}',
        '[{"name": "f", "parameters": {}}]',
        '{"name": "f"}',
    ],
)
def test_json_that_is_no_call_is_text(text):
    """Mutants: any first key; a name without arguments is a call; what was tried in vain is lost."""
    assert split(LLAMA3, [text]) == [TextPiece(text)]
