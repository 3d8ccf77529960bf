"""What concepts are made of: more rows for a table of embeddings, more words for a tokenizer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.concepts import EmbeddingExtender, TokenExtender
from refiners.foundationals.clip.text_encoder import TokenEncoder
from refiners.foundationals.clip.tokenizer import CLIPTokenizer

START, END = 49406, 49407


def make_embeddings(rows: int = 2) -> EmbeddingExtender:
    extender = EmbeddingExtender(TokenEncoder(5, 3))
    for _ in range(rows):
        extender.add_embedding(torch.randn(3))
    return extender


def test_a_fresh_one_changes_nothing() -> None:
    extender = make_embeddings(rows=0)
    x = torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert torch.equal(extender(x), extender.target(x))
    assert extender.new_weight.shape == (0, 3) and extender.num_embeddings == 5


def test_the_lookup_is_that_in_one_table() -> None:
    extender = make_embeddings()
    table = torch.cat([extender.old_weight, extender.new_weight])
    assert extender.num_embeddings == 7 and table.shape == (7, 3)
    for x in (torch.tensor([[0, 6, 4], [5, 5, 2]]), torch.arange(7), torch.empty(0, 3, dtype=torch.int64)):
        assert torch.equal(extender(x), table[x])
    assert torch.equal(extender(torch.arange(7, dtype=torch.int32)), table)


def test_the_old_weight_is_that_of_the_target() -> None:
    target = TokenEncoder(5, 3, dtype=torch.float64)
    extender = EmbeddingExtender(target)
    assert extender.old_weight is target.weight
    assert list(extender.state_dict()) == ["old_weight", "new_weight"]
    assert extender.new_weight.dtype == torch.float64 and extender.new_weight.requires_grad
    assert [str(child).split("(")[0] for child in extender] == ["Lambda"]


def test_a_row_is_copied_and_cast() -> None:
    extender = EmbeddingExtender(TokenEncoder(5, 3, dtype=torch.float64))
    row = torch.ones(3, requires_grad=True)
    before = extender.new_weight
    extender.add_embedding(row)
    assert extender.new_weight is not before and extender.new_weight.is_leaf and extender.new_weight.requires_grad
    with torch.no_grad():
        row.zero_()
    assert extender.new_weight.tolist() == [[1, 1, 1]] and extender.new_weight.dtype == torch.float64


def test_gradients_reach_the_new_rows_only() -> None:
    extender = make_embeddings()
    extender(torch.tensor([[0, 5, 5, 1]])).sum().backward()
    assert extender.old_weight.grad is None
    assert extender.new_weight.grad is not None and extender.new_weight.grad.tolist() == [[2, 2, 2], [0, 0, 0]]
    assert extender.old_weight.requires_grad, "the parameter itself stays as it was"


@pytest.mark.parametrize("rows,ids", [(2, [0, 7]), (2, [-1, 3]), (0, [5, 0])])
def test_an_id_without_a_row_is_an_error(rows: int, ids: list[int]) -> None:
    last = 4 + rows
    with pytest.raises(ValueError, match=f"x must hold ids from 0 to {last}, got ids from {min(ids)} to {max(ids)}"):
        make_embeddings(rows).lookup(torch.tensor([ids]))


@pytest.mark.parametrize("shape", [(4,), (1, 3), ()])
def test_a_row_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    extender = make_embeddings()
    with pytest.raises(AssertionError, match=r"embedding must have shape \(3,\), got "):
        extender.add_embedding(torch.zeros(shape))
    with pytest.raises(TypeError, match="embedding must be a tensor, got list"):
        extender.add_embedding([0.0, 0.0, 0.0])
    assert extender.num_embeddings == 7


def test_the_lookup_compiles_to_one_graph() -> None:
    extender = make_embeddings()
    torch.compiler.reset()
    x = torch.tensor([[0, 6, 4], [5, 5, 2]])
    compiled = torch.compile(extender, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), extender(x))


def test_no_table_is_copied() -> None:
    extender = EmbeddingExtender(TokenEncoder(50_000, 8))
    extender.add_embedding(torch.randn(8))
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.data_ptr() != extender.old_weight.data_ptr():
                sizes.append(result.numel())
            return result

    with Watch():
        extender.lookup(torch.tensor([[1, 50_000, 3]]))
    assert sizes and max(sizes) <= 3 * 8


def test_weights_that_came_since_are_used() -> None:
    chain = fl.Chain(TokenEncoder(5, 3, device="meta"))
    extender = EmbeddingExtender(chain.layer(0, TokenEncoder))
    extender.add_embedding(torch.zeros(3))
    chain.load_state_dict({"TokenEncoder.weight": torch.randn(5, 3)}, assign=True)
    extender.new_weight = torch.nn.Parameter(torch.ones(1, 3, dtype=torch.float64))
    extender.inject(chain)
    assert extender.old_weight is extender.target.weight and extender.new_weight.dtype == torch.float32
    assert torch.equal(chain(torch.tensor([2, 5])), torch.stack([extender.target.weight[2], torch.ones(3)]))
    loaded = torch.randn(5, 3)
    state = {"EmbeddingExtender.old_weight": loaded, "EmbeddingExtender.new_weight": torch.zeros(1, 3)}
    chain.load_state_dict(state, assign=True)
    extender.eject()
    assert torch.equal(chain.layer(0, TokenEncoder).weight, loaded)


def make_tokenizer(*tokens: str) -> CLIPTokenizer:
    extender = TokenExtender(CLIPTokenizer())
    for index, token in enumerate(tokens):
        extender.add_token(token, END + 1 + index)
    return extender.ensure_find(CLIPTokenizer)


def test_a_special_character_can_be_a_word() -> None:
    chain = fl.Chain(CLIPTokenizer())
    target = chain.layer("CLIPTokenizer", CLIPTokenizer)
    new_id = max(target.token_to_id_mapping.values()) + 42
    extender = TokenExtender(target)
    extender.add_token("*", new_id)
    extender.inject(chain)
    found = chain.ensure_find(CLIPTokenizer)
    assert found is not target
    assert torch.equal(found.encode("*"), torch.tensor([START, new_id, END]))
    extender.eject()
    assert chain.ensure_find(CLIPTokenizer) is target
    assert target.encode("*").tolist() == [START, 265, END]


def test_the_target_is_not_changed() -> None:
    target = CLIPTokenizer(sequence_length=9, start_of_text_token_id=1, end_of_text_token_id=2, pad_token_id=3)
    before = target.encode("a <x>!").tolist()
    extender = TokenExtender(target)
    extender.add_token("<x>", 50_000)
    assert target.encode("a <x>!").tolist() == before
    assert "<x>" not in target.token_to_id_mapping and "<x>" not in target.byte_pair_encoding_cache
    tokenizer = extender.ensure_find(CLIPTokenizer)
    assert tokenizer("<x>").tolist() == [[1, 50_000, 2, 3, 3, 3, 3, 3, 3]]
    assert tokenizer.vocabulary_path == target.vocabulary_path


@pytest.mark.parametrize("token", ["<cat-toy>", "*", "sks", "<É>", "日本", "a b", "c++", "[x](y)", "7", "<|x|>"])
def test_a_word_is_found_wherever_it_stands(token: str) -> None:
    tokenizer = make_tokenizer(token)
    plain = CLIPTokenizer()
    new = END + 1
    for before, after in [
        ("", ""),
        ("a photo of ", ""),
        ("(", "), 8k"),
        ('"!', '"'),
        ("x", "y"),
        ("¿", "日"),
        ("", "'s"),
    ]:
        expected = [*plain.encode(before).tolist()[:-1], new, *plain.encode(after).tolist()[1:]]
        for spelled in (token, token.upper(), token.lower()):
            assert tokenizer.encode(before + spelled + after).tolist() == expected
    assert tokenizer.encode(token * 2).tolist() == [START, new, new, END]


def test_ids_are_those_of_transformers(public_tokenizer: Any) -> None:
    tokens = ["<cat-toy>", "<gta5-artwork>", "<7>"]
    tokenizer, public = make_tokenizer(*tokens), copy.deepcopy(public_tokenizer)
    public.add_tokens(tokens)
    for text in ["a <cat-toy> in the style of <gta5-artwork>", "(<cat-toy>:1.2)<7><gta5-artwork>s", "<Cat-Toy>, <7>."]:
        assert tokenizer.encode(text).tolist() == public(text).input_ids


def test_other_texts_keep_their_ids() -> None:
    plain, tokenizer = CLIPTokenizer(), make_tokenizer("<one>", "*", "sks", "_")
    for text in ["it's 64k, <two>!", "naïve 日本語 🐱 ½", "<one", "one>", "ask s", "<|endoftext|>"]:
        assert torch.equal(tokenizer.encode(text), plain.encode(text))
    cat = make_tokenizer("cat")  # also a piece of other words
    assert torch.equal(cat.encode("dog fish"), plain.encode("dog fish"))
    assert cat.encode("concatenate").tolist()[2] == END + 1


def test_the_word_added_last_is_tried_first() -> None:
    assert make_tokenizer("<a>", "<a>b").encode("<a>b").tolist() == [START, END + 2, END]
    assert make_tokenizer("<a>b", "<a>").encode("<a>b").tolist() == [START, END + 2, 321, END]


def test_wrong_words() -> None:
    extender = TokenExtender(CLIPTokenizer())
    extender.add_token("<x>", 50_000)
    before = extender.ensure_find(CLIPTokenizer).token_pattern
    for token, message in [
        ("", "token must be a word without white space around it, got ''"),
        (" <y>", "token must be a word without white space around it, got ' <y>'"),
        ("<X>", "token must be a new word, got '<X>', which was added before"),
        ("a<|EndOfText|>", "token must not hold the text of a special token"),
        ("\ud800", "surrogate"),
    ]:
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            extender.add_token(token, 50_001)
    with pytest.raises(TypeError, match="token must be a string, got int"):
        extender.add_token(3, 50_001)
    for taken in (50_000, 320, END):
        with pytest.raises(AssertionError, match=f"token_id must be a new id, got {taken}"):
            extender.add_token("<y>", taken)
    tokenizer = extender.ensure_find(CLIPTokenizer)
    assert tokenizer.token_pattern is before and 50_001 not in tokenizer.token_to_id_mapping.values()
    extender.add_token("<y>", 50_001)
    assert tokenizer.encode("<y>").tolist() == [START, 50_001, END]
