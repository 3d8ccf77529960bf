"""The store of named bags of values, on its own."""

import torch

from refiners.fluxion.context import Context, ContextProvider, Contexts


def test_the_types_are_dicts() -> None:
    context: Context = {"key": 1}
    contexts: Contexts = {"name": context}
    assert ContextProvider.create(contexts).contexts == contexts


def test_a_provider_starts_empty() -> None:
    assert ContextProvider().contexts == {}


def test_set_context_binds_the_dict_itself_and_replaces_the_former_one() -> None:
    provider = ContextProvider()
    first: Context = {"a": 1}
    second: Context = {"b": 2}
    provider.set_context("name", first)
    assert provider.get_context("name") is first
    provider.set_context("name", second)
    assert provider.get_context("name") is second
    assert first == {"a": 1}


def test_an_absent_context_is_none() -> None:
    assert ContextProvider().get_context("name") is None


def test_names_can_be_tested_in_the_contexts() -> None:
    provider = ContextProvider.create({"name": {}})
    assert "name" in provider.contexts
    assert "other" not in provider.contexts


def test_update_binds_the_dicts_of_absent_names_without_copy() -> None:
    provider = ContextProvider()
    context: Context = {"a": 1}
    provider.update_contexts({"name": context})
    assert provider.get_context("name") is context


def test_update_keeps_the_dict_of_a_present_name_and_the_keys_not_mentioned() -> None:
    provider = ContextProvider()
    present: Context = {"a": 1, "b": 1}
    new: Context = {"b": 2, "c": 2}
    provider.set_context("name", present)
    provider.update_contexts({"name": new})
    assert provider.get_context("name") is present
    assert present == {"a": 1, "b": 2, "c": 2}
    assert new == {"b": 2, "c": 2}


def test_create_gives_a_fresh_provider_each_time() -> None:
    contexts: Contexts = {"name": {"a": 1}}
    first, second = ContextProvider.create(contexts), ContextProvider.create(contexts)
    assert isinstance(first, ContextProvider) and first is not second
    second.set_context("other", {})
    assert first.contexts == {"name": {"a": 1}}


def test_repr_shows_tensors_by_shape_dtype_and_device_and_others_by_repr() -> None:
    provider = ContextProvider.create({"name": {"x": torch.zeros(2, 3), "text": "x", "number": 1}})
    shown = repr(provider)
    assert shown.startswith("ContextProvider(contexts={'name': {'x': 'Tensor(shape=")
    assert "2, 3" in shown and "dtype=torch.float32" in shown and "device=cpu)'" in shown
    assert "'text': \"'x'\"" in shown and "'number': '1'" in shown


def test_repr_of_an_empty_provider() -> None:
    assert repr(ContextProvider()) == "ContextProvider(contexts={})"
