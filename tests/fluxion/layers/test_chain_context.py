"""Contexts across a tree: how long values live, who sees them, and who does not."""

from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.context import ContextProvider
from refiners.fluxion.layers.chain import ChainError


class Declaring(fl.Chain):
    """Declares two contexts; both keys of the first are reset, the list of the second starts empty."""

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": None, "baz": 0}, "store": {"items": []}}


class Nested(fl.Chain):
    """Declares one of the same contexts again, with a default of its own."""

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": "inner"}}


class DeclaringOther(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"other": {"bar": "inner"}}


def read(key: str = "bar", context: str = "foo") -> fl.UseContext:
    return fl.UseContext(context, key)


def test_every_chain_has_a_provider() -> None:
    chain = fl.Chain()
    assert isinstance(chain.provider, ContextProvider) and chain.provider.contexts == {}
    assert chain.init_context() == {}


def test_init_context_is_declared_at_construction() -> None:
    chain = Declaring()
    assert chain.use_context("foo") == {"bar": None, "baz": 0}
    assert "foo" in chain.provider.contexts and "other" not in chain.provider.contexts


def test_a_chain_uses_its_own_contexts_and_a_leaf_those_of_its_parent() -> None:
    leaf = read()
    chain = Nested(leaf)
    Declaring(chain)
    assert chain.use_context("foo")["bar"] == leaf.use_context("foo")["bar"]


# 1. lifetime


def test_values_of_declared_keys_last_until_the_end_of_the_next_call() -> None:
    chain = Declaring(read())
    chain.set_context("foo", {"bar": 1})
    assert chain(0) == 1
    assert chain.use_context("foo")["bar"] is None
    with pytest.raises(ChainError, match="context entry foo.bar is unset"):
        chain(0)


def test_defaults_are_fresh_at_each_reset() -> None:
    append = fl.SetContext("store", "items", callback=lambda items, x: items.append(x))
    chain = Declaring(append, read("items", "store"))
    assert chain(1) == [1]
    assert chain(2) == [2]
    assert chain.use_context("store")["items"] == []


def test_values_under_undeclared_keys_and_names_persist() -> None:
    chain = Declaring(read("extra"), fl.Passthrough(read("value", "other")))
    chain.set_context("foo", {"extra": 1})
    chain.set_context("other", {"value": 2})
    for _ in range(3):
        assert chain(0) == (1,)
    assert chain.use_context("foo")["extra"] == 1 and chain.use_context("other") == {"value": 2}


def test_calling_a_descendant_does_not_reset_what_an_ancestor_declares() -> None:
    inner = fl.Chain(read())
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    for _ in range(3):
        assert inner(0) == 1
    assert chain(0) == 1 and chain.use_context("foo")["bar"] is None


@pytest.mark.parametrize("base", [fl.Chain, fl.Residual, fl.Passthrough])
def test_these_chains_reset_their_contexts(base: type[fl.Chain]) -> None:
    declaring = type("Declares", (base,), {"init_context": lambda self: {"foo": {"bar": 1}}})
    chain = declaring(fl.SetContext("foo", "bar"))
    chain(5)
    assert chain.use_context("foo") == {"bar": 1}


def test_a_failing_call_leaves_contexts_clean() -> None:
    def fail(_x: int) -> None:
        raise RuntimeError

    chain = Declaring(
        fl.SetContext("foo", "bar"),
        fl.SetContext("store", "items", callback=lambda items, x: items.append(x)),
        fl.Chain(fl.Lambda(fail)),
    )
    with pytest.raises(ChainError):
        chain(1)
    assert chain.use_context("foo") == {"bar": None, "baz": 0}
    assert chain.use_context("store") == {"items": []}


# 2. accumulation


def test_setting_keys_one_after_the_other_gives_both() -> None:
    inner = fl.Chain()
    chain = fl.Chain(inner)
    chain.set_context("name", {"a": 1})
    chain.set_context("name", {"b": 2})
    assert inner.use_context("name") == {"a": 1, "b": 2}


def test_the_keys_of_a_declared_context_accumulate_too() -> None:
    inner = fl.Chain()
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    chain.set_context("foo", {"baz": 2})
    assert inner.use_context("foo") == {"bar": 1, "baz": 2}


# 3. downward visibility


def test_values_are_visible_at_any_depth_also_when_called_directly() -> None:
    leaf = read()
    deep = fl.Chain(leaf)
    chain = Declaring(fl.Sum(fl.Chain(fl.Parallel(deep))))
    chain.set_context("foo", {"bar": 1})
    assert deep(0) == leaf(0) == 1


def test_values_are_visible_in_chains_inserted_later() -> None:
    chain = Declaring()
    chain.set_context("foo", {"bar": 1})
    chain.set_context("other", {"value": 2})
    inner = fl.Chain(fl.Chain(read(), fl.Passthrough(read("value", "other"))))
    chain.append(inner)
    assert inner(0) == (1,)
    assert inner.use_context("other") == {"value": 2}


def test_what_an_adopted_chain_declared_takes_the_outer_values() -> None:
    inner = Nested(read())
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 7})
    assert inner(0) == 7


# 4. sharing


def test_a_set_context_is_seen_in_other_branches() -> None:
    chain = Declaring(
        fl.Chain(fl.Chain(fl.SetContext("foo", "bar"))), fl.Sum(fl.Chain(read()), fl.Chain(fl.Chain(read())))
    )
    assert chain(3) == 6


def test_chains_below_share_one_dict() -> None:
    first, second = fl.Chain(fl.Chain()), fl.Chain()
    Declaring(first, second)
    assert first.use_context("foo") is second.use_context("foo") is first.layer(0, fl.Chain).use_context("foo")


def test_a_set_context_is_seen_by_a_direct_child_of_the_chain_whose_context_was_set() -> None:
    chain = fl.Chain(fl.Chain(fl.SetContext("name", "value")), read("value", "name"))
    chain.set_context("name", {"value": 0})
    chain.set_context("name", {"other": 0})
    assert chain(5) == 5


# 5. nested providers


def test_outer_values_are_copied_into_nested_contexts_of_the_same_name() -> None:
    nested = Nested(read())
    chain = Declaring(nested)
    chain.set_context("foo", {"bar": "outer"})
    assert nested.use_context("foo")["bar"] == "outer"
    assert nested.use_context("foo") is not chain.use_context("foo")


def test_inner_writes_and_resets_do_not_change_the_outer_context() -> None:
    nested = Nested(fl.SetContext("foo", "bar"), read())
    chain = Declaring(nested, fl.Parallel(fl.Identity(), read()))
    chain.set_context("foo", {"bar": "outer"})
    assert chain("written") == ("written", "outer")
    chain.set_context("foo", {"bar": "outer"})
    nested("written")
    assert nested.use_context("foo")["bar"] == "inner"
    assert chain.use_context("foo")["bar"] == "outer"
    nested.set_context("foo", {"bar": "set"})
    assert chain.use_context("foo")["bar"] == "outer"


@pytest.mark.parametrize("base", [fl.Chain, fl.Passthrough, Declaring])
def test_values_set_above_a_nested_provider_last_over_calls_from_above(base: type[fl.Chain]) -> None:
    seen: list[Any] = []
    nested = DeclaringOther(read("bar", "other"), fl.Lambda(seen.append))
    middle = fl.Chain(nested)
    outer = base(middle)
    outer.set_context("other", {"bar": 1})
    for call in (outer, outer, middle, middle, outer):
        call(0)
    assert seen == [1, 1, 1, 1, 1]
    nested(0)
    assert nested.use_context("other")["bar"] == "inner", "no call from above has come since"


def test_every_set_context_copies_all_outer_values_into_nested_contexts() -> None:
    nested = Nested()
    chain = Declaring(nested)
    chain.set_context("foo", {"bar": "outer"})
    nested.use_context("foo")["bar"] = "written"
    chain.set_context("store", {"items": [1]})
    assert nested.use_context("foo")["bar"] == "outer"


# 6. local override


def test_a_set_context_in_the_middle_is_local() -> None:
    middle, sibling = fl.Chain(read()), fl.Chain(read())
    chain = Declaring(middle, sibling)
    chain.set_context("foo", {"bar": 1, "baz": 2})
    middle.set_context("foo", {"bar": 10})
    assert middle(0) == 10 and sibling(0) == 1
    assert chain.use_context("foo") == {"bar": 1, "baz": 2}
    assert middle.use_context("foo")["baz"] == 2


def test_a_local_override_reaches_nested_providers() -> None:
    nested = Nested(read())
    middle = fl.Chain(nested)
    chain = Declaring(middle)
    middle.set_context("foo", {"bar": 10})
    assert nested(0) == 10 and chain.use_context("foo")["bar"] is None


# 7. to 9. the values themselves


def test_values_are_shared_by_reference() -> None:
    items: list[int] = []
    nested = Nested()
    chain = Declaring(nested, fl.Chain())
    chain.set_context("foo", {"bar": items})
    nested.use_context("foo")["bar"].append(1)
    assert chain.use_context("foo")["bar"] is items and items == [1]


def test_setting_the_dict_that_was_read_is_harmless() -> None:
    inner = fl.Chain(read())
    chain = Declaring(inner)
    chain.set_context("foo", {"bar": 1})
    chain.set_context("foo", chain.use_context("foo"))
    inner.set_context("foo", inner.use_context("foo"))
    assert chain.use_context("foo") == inner.use_context("foo") == {"bar": 1, "baz": 0}
    chain.set_context("foo", {"bar": 2})
    assert chain.use_context("foo")["bar"] == 2


def test_items_assigned_to_the_dict_are_seen_below() -> None:
    chain = Declaring(fl.Chain(read()))
    chain.set_context("foo", {"bar": 1})
    chain.use_context("foo")["bar"] = 2
    assert chain(0) == 2


def test_the_dict_of_the_caller_is_not_written_to() -> None:
    given = {"bar": 1}
    chain = Declaring(fl.SetContext("foo", "bar"))
    chain.set_context("foo", given)
    chain(5)
    chain.set_context("foo", {"baz": 9})
    assert given == {"bar": 1}


def test_an_entry_may_hold_any_value() -> None:
    tensor = torch.zeros(1)
    for value in (0, False, "", [], tensor):
        chain = Declaring(read())
        chain.set_context("foo", {"bar": value})
        assert chain(None) is value
