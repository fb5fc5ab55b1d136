"""Packing: conversations that share a beginning are trained on as if each stood alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tools.reader import train  # noqa: E402
from tools.reader.attention import NAME  # noqa: E402
from tools.reader.data import BATCH_TOKENS, IGNORED, Batches, Mixture, pack  # noqa: E402
from tools.reader.tokens import Encoded, encode, segments, train_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> object:
    mixture = Mixture(random.Random(0))
    made = [conversation for _ in range(40) for conversation in mixture.group(1.0)]
    return train_tokenizer("".join(text for text, _ in segments(conversation)) for conversation in made)


@pytest.fixture(scope="module")
def model(tokenizer: object) -> object:
    torch.manual_seed(0)
    return train.build(tokenizer).eval()


def groups_of(tokenizer: object, seed: int, count: int) -> list[list[Encoded]]:
    mixture = Mixture(random.Random(seed))
    return [[encode(tokenizer, one) for one in mixture.group(0.9)] for _ in range(count)]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_conversation_sees_what_it_would_see_alone(tokenizer: object, model: object, seed: int) -> None:
    """Mutants caught: branches that see each other; positions that run on from one branch to the next."""
    groups = groups_of(tokenizer, seed, 3)
    batch = pack(groups)
    with torch.inference_mode():
        packed = train.hidden_of(model, batch)[0]
        model.set_attn_implementation("sdpa")
        try:
            for group, layout, at in zip(groups, batch.groups, starts(batch.groups), strict=True):
                place = at + layout.prefix
                for (ids, _), length in zip(group, layout.branches, strict=True):
                    alone = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
                    mine = torch.cat([packed[at : at + layout.prefix], packed[place : place + length]])
                    torch.testing.assert_close(mine, alone, atol=1e-3, rtol=1e-3)
                    place += length
        finally:
            model.set_attn_implementation(NAME)


def starts(layouts: list) -> list[int]:
    return [sum(map(len, layouts[:index])) for index in range(len(layouts))]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_answer_is_learnt_once_from_the_token_before_it(tokenizer: object, seed: int) -> None:
    """Mutants caught: a beginning shared as far as the texts agree; one shared up to the first answer's first token."""
    groups = groups_of(tokenizer, seed, 3)
    groups.append([groups[0][0]] * 2)
    batch = pack(groups)
    wanted = [
        token for group in groups for ids, learnt in group for token, learn in zip(ids, learnt, strict=True) if learn
    ]
    assert batch.labels[batch.labels != IGNORED].tolist() == wanted
    for at, layout in zip(starts(batch.groups), batch.groups, strict=True):
        for branch in range(len(layout.branches)):
            assert batch.labels[0, at + layout.prefix + sum(layout.branches[:branch])] == IGNORED


def test_batches_are_full_and_follow_from_the_seed(tokenizer: object) -> None:
    first, again = (Batches(tokenizer, random.Random(7), 2048) for _ in range(2))
    for progress in (0.0, 0.3, 1.0):
        one, other = first.next(progress), again.next(progress)
        assert one.tokens.shape[1] >= BATCH_TOKENS
        assert torch.equal(one.tokens, other.tokens)
        assert int(one.positions.max()) < 2048
