"""The tokenizer: the ids of any text are those of the public one."""

import copy
import json
import pickle
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

import refiners.fluxion.layers as fl
from refiners.foundationals.clip import tokenizer as module
from refiners.foundationals.clip.tokenizer import CLIPTokenizer

DATA = Path(__file__).parents[2] / "data" / "clip"
TEXTS: dict[str, list[str]] = json.loads((DATA / "texts.json").read_text())
TOKENS: dict[str, list[int]] = json.loads((DATA / "tokens.json").read_text())
START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer()


def ids_of(public: Any, text: str) -> list[int]:
    return public(text, truncation=False).input_ids


@pytest.mark.parametrize("text", TOKENS)
def test_ids_are_the_recorded_ones(tokenizer: CLIPTokenizer, text: str) -> None:
    assert tokenizer.encode(text).tolist() == TOKENS[text]


def test_there_are_many_texts() -> None:
    assert len({text for texts in TEXTS.values() for text in texts}) > 400


@pytest.mark.parametrize("kind", TEXTS)
def test_ids_of_odd_texts_are_those_of_transformers(tokenizer: CLIPTokenizer, public_tokenizer: Any, kind: str) -> None:
    for text in TEXTS[kind]:
        assert tokenizer.encode(text).tolist() == ids_of(public_tokenizer, text), f"{text!r}"


def test_ids_of_repeated_letters_are_those_of_transformers(tokenizer: CLIPTokenizer, public_tokenizer: Any) -> None:
    for text in [letter * count for letter in "aehosxz!é日" for count in (*range(2, 34), 100, 1000)]:
        assert tokenizer.encode(text).tolist() == ids_of(public_tokenizer, text), f"{text!r}"


def test_a_word_of_ten_thousand_letters_is_encoded(tokenizer: CLIPTokenizer, public_tokenizer: Any) -> None:
    for text in ("ab" * 5000, "mississippi" * 1000, "é" * 10_000):
        assert tokenizer.encode(text).tolist() == ids_of(public_tokenizer, text)


# Letters and numbers that Python does not know yet may be known to `transformers`.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
ODD = st.sampled_from(list("aAstSTmMdDlLvVeErR''' __09½²Ⅷ٣éßİſΣσ日本\u0301\u0327\u200d\x1c\x85\xa0\t\n<|>👩👧"))
PIECES = st.sampled_from(["<|startoftext|>", "<|endoftext|>", "<|EndOfText|>", "'s", "'LL", "photo", "Cat ", " the"])


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(text=st.lists(ASSIGNED | ODD | PIECES, max_size=30).map("".join))
def test_ids_of_any_text_are_those_of_transformers(tokenizer: CLIPTokenizer, public_tokenizer: Any, text: str) -> None:
    assert tokenizer.encode(text).tolist() == ids_of(public_tokenizer, text)


def test_every_character_has_the_ids_of_transformers(tokenizer: CLIPTokenizer, public_tokenizer: Any) -> None:
    characters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    for start in range(0, len(characters), 4096):
        text = " ".join(characters[start : start + 4096 : 5])
        assert tokenizer.encode(text).tolist() == ids_of(public_tokenizer, text), f"from U+{ord(characters[start]):04X}"


def test_prompts_are_padded_and_truncated_like_those_of_transformers(
    tokenizer: CLIPTokenizer, public_tokenizer: Any
) -> None:
    long = ", ".join(TEXTS["prompts"] * 3)
    prompts = ["", "a cute cat", "64k", long, long[:300], *TEXTS["emoji"]]
    public = public_tokenizer(prompts, max_length=77, truncation=True, padding="max_length", return_tensors="pt")
    assert torch.equal(tokenizer(prompts), public.input_ids)


def test_a_string_and_a_list(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a cute cat")
    assert ids.dtype == torch.int64 and ids.device.type == "cpu"
    assert ids.tolist() == [[START, 320, 2242, 2368, END] + [END] * 72]
    assert torch.equal(tokenizer(["a cute cat", "a c"]), torch.cat([ids, tokenizer("a c")]))
    assert tokenizer([]).shape == (0, 77) and tokenizer([]).dtype == torch.int64


@pytest.mark.parametrize("text", [None, 3, ("a", "b"), b"a"])
def test_another_type_is_named(tokenizer: CLIPTokenizer, text: object) -> None:
    with pytest.raises(AssertionError, match=rf"Expected type `str` or `list\[str\]`, got {type(text).__name__}"):
        tokenizer(text)
    with pytest.raises(AssertionError, match=f"got a list with {type(text).__name__}"):
        tokenizer(["a", text])
    with pytest.raises(TypeError, match=f"text must be a string, got {type(text).__name__}"):
        tokenizer.encode(text)


def test_a_long_prompt_ends_with_the_end(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a " * 200)[0].tolist()
    assert ids == [START, *[320] * 75, END]
    assert len(tokenizer.encode("a " * 200)) == 202


def test_the_maximum_length(tokenizer: CLIPTokenizer) -> None:
    for length, expected in [(2, []), (3, [320]), (4, [320, 2242]), (5, [320, 2242, 2368]), (6, [320, 2242, 2368])]:
        assert tokenizer.encode("a cute cat", max_length=length).tolist() == [START, *expected, END]
    for length in (1, 0, -1):
        with pytest.raises(AssertionError, match=f"max_length must be at least 2, the start and the end, got {length}"):
            tokenizer.encode("a", max_length=length)


def test_nothing_is_encoded_beyond_the_maximum_length() -> None:
    tokenizer = CLIPTokenizer()
    tokenizer.encode("one two three", max_length=4)
    assert list(tokenizer.byte_pair_encoding_cache) == ["", "one", "two"]


def test_a_lone_surrogate_is_named(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match=r"text must consist of characters, got the lone surrogate U\+D83D at index 1"):
        tokenizer.encode("a\ud83d")


def test_the_ids_of_special_tokens_are_arguments() -> None:
    tokenizer = CLIPTokenizer(sequence_length=8, start_of_text_token_id=5, end_of_text_token_id=6, pad_token_id=0)
    assert tokenizer("a<|startoftext|><|endoftext|>").tolist() == [[5, 320, 5, 6, 6, 0, 0, 0]]


def test_the_arguments_are_printed_and_kept() -> None:
    assert str(CLIPTokenizer()) == "CLIPTokenizer()"
    assert str(CLIPTokenizer(pad_token_id=0)) == "CLIPTokenizer(pad_token_id=0)"
    tokenizer = CLIPTokenizer()
    assert (tokenizer.sequence_length, tokenizer.pad_token_id) == (77, END)
    assert (tokenizer.start_of_text_token_id, tokenizer.end_of_text_token_id) == (START, END)
    assert tokenizer.vocabulary_path.name == "bpe_simple_vocab_16e6.txt.gz"
    assert not list(tokenizer.parameters())


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sequence_length must be at least 2, the start and the end, got 1"):
        CLIPTokenizer(sequence_length=1)
    with pytest.raises(FileNotFoundError, match="absent"):
        CLIPTokenizer(vocabulary_path=tmp_path / "absent")


def test_the_tables(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.byte_to_unicode_mapping == CLIPTokenizer.get_bytes_to_unicode_mapping()
    assert {tokenizer.byte_decoder[c]: c for c in tokenizer.byte_decoder} == tokenizer.byte_to_unicode_mapping
    assert len(tokenizer.token_to_id_mapping) == 49407 and tokenizer.token_to_id_mapping[""] == END
    assert len(tokenizer.byte_pair_encoding_ranks) == 48894
    assert CLIPTokenizer().byte_pair_encoding_cache == {"": ""}
    assert tokenizer.token_pattern.findall("It's 64k") == ["It", "'s", "6", "4", "k"]


def test_words_are_remembered_as_pieces() -> None:
    tokenizer = CLIPTokenizer()
    assert tokenizer.byte_pair_encoding("mississippi") == "mississippi</w>"
    assert tokenizer.byte_pair_encoding("") == ""
    assert tokenizer.byte_pair_encoding("ðŁĲ±") == "ðŁĲ±</w>"
    assert tokenizer.byte_pair_encoding_cache["mississippi"] == "mississippi</w>"
    tokenizer.byte_pair_encoding_cache["mississippi"] = "cat</w> dog</w>"
    assert tokenizer.encode("mississippi").tolist() == [START, 2368, 1929, END]


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CLIPTokenizer()
    tokenizer.encode("x" * 65)
    assert list(tokenizer.byte_pair_encoding_cache) == [""]
    monkeypatch.setattr(module, "_MAX_CACHED", 3)
    expected = CLIPTokenizer().encode("one two three four").tolist()
    assert tokenizer.encode("one two three four").tolist() == expected
    assert list(tokenizer.byte_pair_encoding_cache) == ["", "one", "two"]


def test_instances_share_the_tables_but_not_their_extensions() -> None:
    first, second = CLIPTokenizer(), CLIPTokenizer(pad_token_id=0)
    assert first.byte_pair_encoding_ranks is second.byte_pair_encoding_ranks
    first.token_to_id_mapping["<x>"] = 5
    first.byte_pair_encoding_cache["<x>"] = "<x>"
    first.byte_to_unicode_mapping.clear()
    for other in (second, CLIPTokenizer()):
        assert "<x>" not in other.token_to_id_mapping and other.byte_pair_encoding_cache == {"": ""}
        assert other.encode("<x>").tolist() == [START, 283, 343, 285, END]


def test_copies_and_pickles_encode_alike(tokenizer: CLIPTokenizer) -> None:
    text = "it's a café, 64k 🐱 <|endoftext|>"
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(other.encode(text), tokenizer.encode(text))
        assert other.token_to_id_mapping is not tokenizer.token_to_id_mapping


def test_threads_share_a_tokenizer() -> None:
    texts = [text for texts in TEXTS.values() for text in texts]
    expected = [CLIPTokenizer().encode(text).tolist() for text in texts]
    tokenizer = CLIPTokenizer()
    results: list[list[list[int]]] = []

    def work() -> None:
        results.append([tokenizer.encode(text).tolist() for text in texts])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_a_tokenizer_is_a_layer(tokenizer: CLIPTokenizer) -> None:
    chain = fl.Chain(tokenizer, fl.Lambda(lambda ids: ids[:, 1]))
    assert chain(["cat", "a"]).tolist() == [2368, 320]
    assert chain.layer("CLIPTokenizer", CLIPTokenizer) is tokenizer


def test_the_end_that_is_cut_off_is_told() -> None:
    tokenizer = CLIPTokenizer(sequence_length=6)  # four ids and the two special ones
    for text in ("", "a cat and a", "  a cat, a  ", "<|endoftext|> " * 4):
        assert tokenizer.cut_off(text) == ""
    assert tokenizer.cut_off("A cat, and a  Dog,\nand") == "a dog, and"
    assert tokenizer.cut_off("a b c d <|endoftext|> E<|startoftext|>") == "<|endoftext|> e<|startoftext|>"
    assert tokenizer.cut_off("a b c d<|endoftext|>") == "<|endoftext|>"


def test_a_word_that_is_cut_in_the_middle_is_told_as_a_whole() -> None:
    tokenizer = CLIPTokenizer(sequence_length=6)
    word = "pneumonoultramicroscopic"
    assert len(tokenizer.encode(word)) - 2 > 2
    assert tokenizer.cut_off(f"a b c {word} x") == f"{word} x"
    assert tokenizer.cut_off("a b c 日本語") == "日本語"


def test_what_is_cut_off_is_what_has_no_effect() -> None:
    tokenizer = CLIPTokenizer()
    text = "a photo of a Café, by night; " * 30
    cut = tokenizer.cut_off(text)
    kept = " ".join(text.lower().split()).removesuffix(cut)
    assert cut and kept + cut == " ".join(text.lower().split())
    assert tokenizer(kept).equal(tokenizer(text))
