"""Concepts: their way into an encoder and out of it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.foundationals.clip import CLIPTextEncoder, CLIPTextEncoderL
from refiners.foundationals.clip.concepts import ConceptExtender, EmbeddingExtender, TokenExtender
from refiners.foundationals.clip.text_encoder import TokenEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer

START, END = 49406, 49407
NESTED = "^ConceptExtender cannot be nested, add concepts to the injected instance instead.$"


def make_encoder(**options: Any) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=16, num_layers=1, num_attention_heads=2, feedforward_dim=32, **options)


@pytest.fixture
def encoder() -> CLIPTextEncoder:
    return make_encoder()


def extend(encoder: CLIPTextEncoder, *tokens: str) -> ConceptExtender:
    extender = ConceptExtender(encoder)
    for token in tokens:
        extender.add_concept(token, torch.randn(encoder.embedding_dim))
    return extender


def test_inject_and_eject() -> None:
    encoder = CLIPTextEncoderL(device="meta")
    initial = repr(encoder)
    one = extend(encoder, "<token1>")
    two = ConceptExtender(encoder)
    assert repr(encoder) == initial
    one.inject()
    assert repr(encoder) != initial
    with pytest.raises(AssertionError, match=NESTED):
        two.inject()
    with pytest.raises(AssertionError, match=NESTED):
        ConceptExtender(encoder)
    one.add_concept("<token2>", torch.randn(768))
    one.eject()
    assert repr(encoder) == initial
    two.inject()
    assert repr(encoder) != initial
    two.eject()
    ConceptExtender(encoder)
    assert repr(encoder) == initial
    for token in ("<token1>", "<token2>"):
        assert len(encoder.ensure_find(CLIPTokenizer).encode(token)) > 3
    one.inject()
    tokenizer = encoder.ensure_find(CLIPTokenizer)
    assert torch.equal(tokenizer.encode("<token1>"), torch.tensor([START, END + 1, END]))
    assert torch.equal(tokenizer.encode("<token2>"), torch.tensor([START, END + 2, END]))
    assert len(tokenizer.encode("<token3>")) > 3


def test_the_layout(layouts: dict[str, Any]) -> None:
    extender = extend(CLIPTextEncoderL(device="meta"), "<one>", "<two>").inject()
    layouts["clip_text_l_with_two_concepts"].check(extender)


def test_ejecting_restores_the_very_objects(encoder: CLIPTextEncoder) -> None:
    before = list(encoder.modules())
    weights = [*encoder.parameters()]
    expected = encoder("a <one> cat")
    extender = extend(encoder, "<one>").inject()
    assert encoder.parent is extender and not torch.equal(encoder("a <one> cat"), expected)
    extender.eject()
    assert encoder.parent is None
    assert all(a is b for a, b in zip(encoder.modules(), before, strict=True))
    assert all(a is b for a, b in zip(encoder.parameters(), weights, strict=True))
    assert torch.equal(encoder("a <one> cat"), expected)


def test_a_prompt_without_concepts_is_encoded_as_before(encoder: CLIPTextEncoder) -> None:
    expected = encoder(["a cat, 64k", ""])
    extend(encoder, "<one>").inject()
    assert torch.equal(encoder(["a cat, 64k", ""]), expected)


def test_a_concept_takes_its_embedding(encoder: CLIPTextEncoder) -> None:
    """A concept with the embedding of a known word is encoded as that word."""
    dog = encoder.ensure_find(TokenEncoder).weight[1929]
    expected = encoder("a photo of a dog on mars")
    extender = ConceptExtender(encoder)
    extender.add_concept("<one>", torch.randn(16))
    extender.add_concept("<my-pet>", dog)
    extender.inject()
    assert torch.equal(encoder("a photo of a <My-Pet> on mars"), expected)
    assert not torch.equal(encoder("a photo of a <one> on mars"), expected)


def test_concepts_survive_ejection(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>", "<two>").inject()
    expected = encoder("<two> <one>")
    extender.eject()
    extender.inject()
    assert torch.equal(encoder("<two> <one>"), expected)


def test_training_moves_the_concept_alone(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>", "<two>").inject()
    before = {key: weight.clone() for key, weight in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([extender.embedding_extender.new_weight], lr=0.1)
    encoder("a <two>")[0, 2].pow(3).sum().backward()
    optimizer.step()
    changed = {key for key, weight in encoder.state_dict().items() if not torch.equal(weight, before[key])}
    assert changed == {"Sum.EmbeddingExtender.new_weight"}
    rows = extender.embedding_extender.new_weight.detach() != before["Sum.EmbeddingExtender.new_weight"]
    assert rows.any(dim=1).tolist() == [False, True]


def test_weights_are_saved_and_loaded_with_the_concepts(encoder: CLIPTextEncoder) -> None:
    extend(encoder, "<one>").inject()
    other = make_encoder(device="meta")
    extender = extend(other, "<one>").inject()
    other.load_state_dict(encoder.state_dict(), assign=True)
    assert torch.equal(other("a <one>"), encoder("a <one>"))
    expected = other("a cat")
    extender.eject()
    assert torch.equal(other("a cat"), expected)


def test_an_encoder_moved_before_injection(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>")
    encoder.to(dtype=torch.float64)
    extender.inject()
    assert extender.embedding_extender.new_weight.dtype == torch.float64
    assert encoder("a <one>").dtype == torch.float64


def test_an_encoder_within_another_chain(encoder: CLIPTextEncoder) -> None:
    root = fl.Chain(fl.Chain(encoder), fl.Lambda(lambda x: x[:, 0]))
    extender = extend(encoder, "<one>").inject()
    assert root.layer((0, 0), ConceptExtender) is extender and root("<one>").shape == (1, 16)
    with pytest.raises(AssertionError, match=NESTED):
        ConceptExtender(encoder)
    extender.eject()
    assert root.layer((0, 0), CLIPTextEncoder) is encoder


def test_ids_follow_the_table() -> None:
    encoder = make_encoder(vocabulary_size=50_000)
    extend(encoder, "<one>", "<two>").inject()
    assert encoder.tokenizer.encode("<two><one>").tolist() == [START, 50_001, 50_000, END]


def test_what_cannot_be_added_leaves_everything_as_it_was(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>")
    for token, embedding, error in [
        ("<one>", torch.zeros(16), ValueError),
        ("", torch.zeros(16), ValueError),
        ("<two>", torch.zeros(15), AssertionError),
        ("<two>", None, TypeError),
        (None, torch.zeros(16), TypeError),
    ]:
        with pytest.raises(error):
            extender.add_concept(token, embedding)
    assert extender.embedding_extender.num_embeddings == 49409
    extender.add_concept("<two>", torch.zeros(16))
    extender.inject()
    assert encoder.tokenizer.encode("<two>").tolist() == [START, END + 2, END]
    small = make_encoder(vocabulary_size=100)
    with pytest.raises(AssertionError, match="token_id must be a new id, got 100"):
        extend(small, "<one>")


def test_what_is_missing_is_named(encoder: CLIPTextEncoder) -> None:
    with pytest.raises(RuntimeError, match=r"^Tokenizer not found\.$"):
        ConceptExtender(encoder[1:])
    with pytest.raises(RuntimeError, match=r"^TokenEncoder not found\.$"):
        ConceptExtender(encoder[:2])


@pytest.mark.parametrize(
    "target", [None, fl.Chain(fl.Linear(2, 2)), fl.Embedding(2, 2)], ids=["None", "Chain", "Embedding"]
)
def test_wrong_targets_are_named(target: object) -> None:
    for kind, name in [
        (ConceptExtender, "CLIPTextEncoder"),
        (EmbeddingExtender, "TokenEncoder"),
        (TokenExtender, "CLIPTokenizer"),
    ]:
        with pytest.raises(TypeError, match=f"target must be a {name}, got {type(target).__name__}"):
            kind(target)


@pytest.mark.parametrize("removed", [0, 2])
def test_a_failed_injection_changes_nothing(encoder: CLIPTextEncoder, removed: int) -> None:
    extender = extend(encoder, "<one>")
    layer = encoder.layer(removed, fl.Module)
    if removed == 2:
        encoder.Sum.pop(0)
    else:
        encoder.pop(0)
    before = repr(encoder)
    with pytest.raises(AssertionError, match="could not find"):
        extender.inject()
    assert repr(encoder) == before and encoder.parent is None and layer is not None
    with pytest.raises(RuntimeError, match="is not injected"):
        extender.eject()


def test_an_extended_encoder_cannot_be_copied_in_structure(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>").inject()
    copies: list[Callable[[], object]] = [extender.structural_copy, encoder.structural_copy, lambda: encoder[:-2]]
    for make_copy in copies:
        with pytest.raises(RuntimeError, match="copied"):
            make_copy()
    extender.eject()
    assert len(encoder[:-2]) == 3


def test_a_deep_copy_is_independent(encoder: CLIPTextEncoder) -> None:
    extender = extend(encoder, "<one>").inject()
    clone = copy.deepcopy(extender)
    assert torch.equal(clone.target("a <one>"), encoder("a <one>"))
    clone.add_concept("<two>", torch.zeros(16))
    assert len(encoder.tokenizer.encode("<two>")) > 3 and len(clone.target.tokenizer.encode("<two>")) == 3
    clone.eject()
    assert encoder.parent is extender


def test_the_places_are_known(encoder: CLIPTextEncoder) -> None:
    extender = ConceptExtender(encoder)
    assert extender.token_encoder_parent is encoder.Sum and extender.clip_tokenizer_parent is encoder
    assert extender.embedding_extender.target is encoder.ensure_find(TokenEncoder)
    assert extender.token_extender.target is encoder.tokenizer
