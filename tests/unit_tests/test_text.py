"""Streamed text against whole text, and stop strings against a character-by-character oracle."""

from __future__ import annotations

import time
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from langchain_accel.errors import AccelError
from langchain_accel.runtime.text import MARK, Text, decoder

SAMPLE = 'the quick brown fox 你好世界 😀👍🏽 é e\u0301 नमस्ते {"name": "x"}\n'
BYTE_LEVEL_SIZE = 480
FIRST_BYTE = 3  # id of <0x00> in the byte-fallback tokenizer


@lru_cache
def byte_level():
    """Byte-level BPE with a special token; its merges cut through characters."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_SIZE,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@lru_cache
def byte_fallback():
    """As Llama 2: words begin with a space mark, the text's first space is dropped, unknown characters are bytes."""
    transformers = pytest.importorskip("transformers")
    words = ["▁", "▁the", "▁hi", "▁▁", "a", "e", "h", "i", "t", "he", "é", "好", ".", "▁.", "\n"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    ids = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(ids, [("h", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@lru_cache
def metaspace():
    """As T5: the decoder drops every space of the first token."""
    transformers = pytest.importorskip("transformers")
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁▁hi", "a", "▁a", "b"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def pieces_of(decode, tokens, stop=()):
    """What each push shows, and what is left at the end."""
    text = Text(decode, stop)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped is not None:
            break
    return [*pieces, text.finish()], text.stopped


texts = st.text(st.sampled_from("the x\n好世é\u0301नम😀👍🏽ﬁ\u200d"), max_size=40) | st.text(max_size=20)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL_SIZE - 1) | st.integers(1, 256), max_size=30))
def test_streamed_is_whole_for_byte_level_tokens_even_at_random(tokens):
    """Mutants: a mark shown at once; `owed` without its bound; no case for text followed by marks."""
    decode = decoder(byte_level())
    assert "".join(pieces_of(decode, tokens)[0]) == decode(tokens)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(259, 273), min_size=1, max_size=4)
        | st.lists(st.integers(0, 2), min_size=1, max_size=2)
        | texts.map(lambda text: [FIRST_BYTE + byte for byte in text.encode()])
    ).map(lambda runs: [token for run in runs for token in run])
)
def test_streamed_is_whole_for_byte_fallback(tokens):
    """Mutants: context dropped at every token (spaces are lost); no case for a run that turns into marks again."""
    decode = decoder(byte_fallback())
    assert "".join(pieces_of(decode, tokens)[0]) == decode(tokens)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=20))
def test_streamed_is_whole_for_metaspace(tokens):
    """Mutant: special tokens kept as context, so that the next token seems to be the first and loses its space."""
    decode = decoder(metaspace())
    assert "".join(pieces_of(decode, tokens)[0]) == decode(tokens)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_characters_are_shown_whole_and_at_once(text):
    """Mutants: nothing held back; one token held back always."""
    for tokenizer in (byte_level(), byte_fallback()):
        decode, tokens = decoder(tokenizer), tokenizer.encode(text, add_special_tokens=False)
        assert decode(tokens) == text
        pieces, _ = pieces_of(decode, tokens)
        assert MARK not in "".join(pieces) or MARK in text
        shown = ""
        for place, piece in enumerate(pieces[:-1]):
            shown += piece
            whole = decode(tokens[: place + 1])
            assert shown == whole if not whole.endswith(MARK) else text.startswith(shown)
        assert pieces[-1] == "" or text.endswith(MARK)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(1, 256), min_size=4, max_size=200), fallback=st.booleans())
def test_bytes_that_are_no_text_are_not_held_for_long(tokens, fallback):
    """At most three tokens wait. Mutant: no `_give_up`."""
    decode = decoder(byte_fallback() if fallback else byte_level())
    bad = [FIRST_BYTE + 0xFF - token % 8 for token in tokens] if fallback else tokens
    text, shown = Text(decode), 0
    for place, token in enumerate(bad):
        shown += len(text.push(token))
        assert shown >= len(decode(bad[: place - 2])) - 1 if place > 2 else True
        assert len(text._window) <= 8


def test_a_character_after_a_bad_byte_survives():
    """Byte fallback alone would turn the whole run into marks. Mutant: `_give_up` without this case."""
    run = [FIRST_BYTE + byte for byte in b"\xff" + "世".encode()]
    pieces, _ = pieces_of(decoder(byte_fallback()), run)
    assert pieces == ["", "", "", MARK + "世", ""]


def test_an_unfinished_character_is_shown_at_the_end_only():
    for tokenizer, start in ((byte_level(), None), (byte_fallback(), FIRST_BYTE)):
        decode = decoder(tokenizer)
        if start is None:
            run = tokenizer.encode("😀")[:1]
            run = run if decode(run).endswith(MARK) else [tokenizer.convert_tokens_to_ids("ð")]
        else:
            run = [start + 0xE4]
        text = Text(decode)
        assert text.push(run[0]) == ""
        assert text.finish() == MARK
        assert text.finish() == ""
        with pytest.raises(AccelError, match="has ended"):
            text.push(run[0])


def first_stop(text, stops):
    """Oracle: read character by character; the first end wins, then the longest."""
    for end in range(1, len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start], text[start:end]
    return text, None


def may_begin(text, stops):
    """Length of the longest end of `text` that begins a stop string."""
    ends = [text[start:] for start in range(len(text) + 1)]
    return max(len(end) for end in ends if any(stop.startswith(end) for stop in stops))


@settings(max_examples=500, deadline=None)
@given(
    chunks=st.lists(st.text("ab好", max_size=4), max_size=15),
    stops=st.lists(st.text("ab好", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_stop_strings_match_as_if_read_by_character(chunks, stops):
    """Mutants: search in the fresh text only; the first of `stop` wins; hold back nothing, or one character less;
    the largest start wins among equal ends; the stop string itself shown.
    """
    whole = "".join(chunks)
    decode = lambda tokens: "".join(chunks[token] for token in tokens)
    expected, matched = first_stop(whole, stops)
    pieces, stopped = pieces_of(decode, range(len(chunks)), stops)
    assert ("".join(pieces), stopped) == (expected, matched)
    shown = ""
    for place, piece in enumerate(pieces[:-1]):
        shown += piece
        so_far = whole[: len("".join(chunks[: place + 1]))]
        if first_stop(so_far, stops)[1] is None:  # no more is held back than must be
            assert len(so_far) - len(shown) == may_begin(so_far, stops)


@settings(max_examples=150, deadline=None)
@given(text=st.text("th quik好😀", max_size=40), start=st.integers(0, 40), size=st.integers(1, 6), data=st.data())
def test_a_stop_string_is_found_wherever_tokens_are_cut(text, start, size, data):
    """Mutant: stop strings compared with single tokens' text."""
    stop = text[start : start + size] or "zz"
    tokenizer = byte_level()
    decode = decoder(tokenizer)
    cut = data.draw(st.integers(0, len(text)))
    tokens = tokenizer.encode(text[:cut]) + [token for character in text[cut:] for token in tokenizer.encode(character)]
    pieces, stopped = pieces_of(decode, tokens, [stop])
    assert ("".join(pieces), stopped) == first_stop(text, [stop])


def test_after_a_stop_string_nothing_follows():
    text = Text(lambda tokens: "".join("abSTOPcd"[token] for token in tokens), ["STOP"])
    assert "".join(text.push(token) for token in range(6)) == "ab"
    assert text.stopped == "STOP"
    with pytest.raises(AccelError, match="STOP"):
        text.push(6)
    assert text.finish() == ""


def test_text_before_min_tokens_takes_no_part_in_a_match():
    """Mutant: held text kept for a match that ends later."""
    decode = lambda tokens: "".join("xSTOPSTOP"[token] for token in tokens)
    text = Text(decode, ["STOP"])
    assert "".join(text.push(token, stops=False) for token in range(3)) == "xST"  # nothing is held back
    assert [text.push(token) for token in (3, 4)] == ["O", "P"]
    assert [text.push(token) for token in (5, 6, 7, 8)] == [""] * 4
    assert text.stopped == "STOP"
    text = Text(decode, ["STOP"])
    assert text.push(1) == ""
    assert text.push(2, stops=False) == "ST"
    assert text.finish() == ""


def test_the_fast_decoder_equals_the_tokenizer():
    """Mutant: the backend used although the tokenizer cleans spaces up."""
    for tokenizer in (byte_level(), byte_fallback(), metaspace()):
        decode = decoder(tokenizer)
        assert decode.__self__ is tokenizer.backend_tokenizer
        for tokens in ([], [0, 1, 2], list(range(len(tokenizer))), list(range(len(tokenizer)))[::-1]):
            assert decode(tokens) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_tokenizer_that_changes_its_backends_text_is_asked_itself():
    transformers = pytest.importorskip("transformers")
    words = Tokenizer(models.WordLevel({"a": 0, ".": 1, "[UNK]": 2}, unk_token="[UNK]"))
    cleaning = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", clean_up_tokenization_spaces=True
    )
    assert decoder(cleaning)([0, 1]) == cleaning.decode([0, 1]) == "a."

    class Loud(transformers.PreTrainedTokenizerFast):
        def _decode(self, *args, **kwargs):
            return super()._decode(*args, **kwargs).upper()

    assert decoder(Loud(tokenizer_object=words, unk_token="[UNK]"))([0]) == "A"


def test_the_cost_of_a_token_does_not_grow():
    """Loose, because machines differ: a hundred times as many tokens must not cost a thousand times as much."""
    decode = decoder(byte_level())
    special, word = 0, byte_level().encode(" the")[0]
    for token in (word, special):
        seconds = []
        for count in (300, 30_000):
            text, began = Text(decode), time.perf_counter()
            for _ in range(count):
                text.push(token)
            seconds.append(time.perf_counter() - began)
        assert seconds[1] < 1000 * seconds[0]
