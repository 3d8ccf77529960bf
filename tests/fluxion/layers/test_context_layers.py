"""The leaves that read and write contexts."""

from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl


class Net(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"foo": {"bar": 1, "none": None, "items": []}, "empty": {}}


def test_use_context_returns_the_entry_whatever_the_arguments() -> None:
    use = fl.UseContext("foo", "bar")
    Net(use)
    assert use() == use(1) == use(1, 2, 3) == 1


def test_use_context_has_reassignable_attributes() -> None:
    use = fl.UseContext("empty", "none")
    Net(use)
    assert (use.context, use.key) == ("empty", "none") and use.func(3) == 3
    use.context, use.key = "foo", "bar"
    assert use() == 1


def test_use_context_of_an_empty_context_is_an_error() -> None:
    use = fl.UseContext("empty", "bar")
    Net(use)
    with pytest.raises(AssertionError, match="context empty is unset"):
        use()


@pytest.mark.parametrize("key", ["none", "missing"])
def test_use_context_of_a_missing_entry_is_an_error(key: str) -> None:
    use = fl.UseContext("foo", key)
    Net(use)
    with pytest.raises(AssertionError, match=f"context entry foo.{key} is unset"):
        use()


def test_use_context_of_an_unknown_name_is_an_error() -> None:
    use = fl.UseContext("unknown", "bar")
    Net(use)
    with pytest.raises(AssertionError, match="Context unknown not found."):
        use()


class NetWithSetters(Net):
    set_value = "no method"

    def set_none(self, value: object) -> None:
        self.set_context("foo", {"none": value})

    def set_bar(self, value: object) -> None:
        self.set_context("unknown", {"bar": value})


@pytest.mark.parametrize(
    ("context", "key", "message"),
    [
        ("foo", "none", "context entry foo.none is unset. Call NetWithSetters.set_none first."),
        ("empty", "bar", "context empty is unset. Call NetWithSetters.set_bar first."),
        ("unknown", "bar", "Context unknown not found. Call NetWithSetters.set_bar first."),
        ("foo", "missing", "context entry foo.missing is unset"),
        ("foo", "value", "context entry foo.value is unset"),
    ],
)
def test_the_method_that_sets_an_entry_is_named_where_there_is_one(context: str, key: str, message: str) -> None:
    use = fl.UseContext(context, key)
    NetWithSetters(fl.Chain(use))
    with pytest.raises(AssertionError) as caught:
        use()
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [0, False, 0.0, "", (), []])
def test_falsy_entries_are_values(value: object) -> None:
    use = fl.UseContext("foo", "bar")
    net = Net(use)
    net.set_context("foo", {"bar": value})
    assert use() is value


def test_compose_replaces_the_function_and_returns_the_layer() -> None:
    use = fl.UseContext("foo", "bar")
    Net(use)
    assert use.compose(lambda x: x + 1) is use and use() == 2
    use.compose(lambda x: x * 10)
    assert use() == 10, "a second function does not stack on the first"


def test_context_layers_show_names_and_keys() -> None:
    assert repr(fl.UseContext("a", "b")) == "UseContext(context='a', key='b')"
    assert str(fl.UseContext("a", "b")) == "UseContext(context=a, key=b)"
    assert repr(fl.SetContext("a", "b")) == "SetContext(context='a', key='b')"
    assert str(fl.SetContext("a", "b")) == "SetContext(context=a, key=b)"


def test_set_context_stores_and_returns_its_argument() -> None:
    x = torch.zeros(1)
    layer = fl.SetContext("foo", "bar")
    net = Net(layer)
    assert layer(x) is x and net.use_context("foo")["bar"] is x
    assert (layer.context, layer.key, layer.callback) == ("foo", "bar", None)


def test_set_context_creates_a_missing_key_and_takes_any_value() -> None:
    layer = fl.SetContext("foo", "new")
    net = Net(layer)
    layer("text")
    assert net.use_context("foo")["new"] == "text"


def test_set_context_takes_exactly_one_argument() -> None:
    layer = fl.SetContext("foo", "bar")
    Net(layer)
    for args in ((), (1, 2)):
        with pytest.raises(TypeError):
            layer(*args)


def test_set_context_of_an_unknown_name_is_an_error() -> None:
    layer = fl.SetContext("unknown", "bar")
    Net(layer)
    with pytest.raises(AssertionError, match="Context unknown not found."):
        layer(1)


def test_set_context_does_nothing_in_an_empty_context() -> None:
    layer = fl.SetContext("empty", "bar")
    net = Net(layer)
    assert layer(1) == 1 and net.use_context("empty") == {}


def test_a_callback_gets_the_entry_and_the_argument_and_its_result_is_ignored() -> None:
    def add(items: list[int], x: int) -> str:
        items.append(x)
        return "ignored"

    layer = fl.SetContext("foo", "items", callback=add)
    net = Net(layer)
    items = net.use_context("foo")["items"]
    assert layer(3) == 3 and layer.callback is add
    assert items == [3] and net.use_context("foo")["items"] is items


def test_a_callback_needs_an_entry() -> None:
    layer = fl.SetContext("foo", "missing", callback=lambda entry, x: None)
    Net(layer)
    with pytest.raises(KeyError):
        layer(1)


def test_reading_and_writing_use_the_direct_parent() -> None:
    use, inner_use = fl.UseContext("foo", "bar"), fl.UseContext("foo", "bar")
    Net(use, Net(fl.SetContext("foo", "bar"), inner_use))[1][0](5)
    assert use() == 1 and inner_use() == 5
