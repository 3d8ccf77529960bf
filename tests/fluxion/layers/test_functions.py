"""Leaves made of a function, and leaves that steer or stop a call."""

import builtins
import functools
import math
import operator
import sys
from types import ModuleType
from typing import Any

import pytest

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ReturnException


class Holder:
    def method(self, x: int, y: int = 1) -> int:
        return x + y


def named(x: int, *rest: int) -> int:
    return x + sum(rest)


def test_lambda_calls_its_function_with_all_arguments() -> None:
    layer = fl.Lambda(named)
    assert layer(1) == 1 and layer(1, 2, 3) == 6
    assert layer.func is named
    assert fl.Lambda(lambda: 3)() == 3


def test_lambda_shows_the_name_and_the_signature() -> None:
    assert str(fl.Lambda(lambda x, y=1: x)) == "Lambda(<lambda>(x, y=1))"
    assert str(fl.Lambda(named)) == "Lambda(named(x: int, *rest: int) -> int)"


def test_lambda_shows_a_bound_method_without_self() -> None:
    assert str(fl.Lambda(Holder().method)) == "Lambda(method(x: int, y: int = 1) -> int)"


def test_lambda_shows_callables_without_a_name_as_partial_function() -> None:
    assert str(fl.Lambda(functools.partial(named, 1))).startswith("Lambda(partial_function(")


@pytest.mark.parametrize("function", [math.hypot, max, operator.itemgetter(0), dict.fromkeys])
def test_lambda_shows_any_callable(function: Any) -> None:
    assert str(fl.Lambda(function)).startswith("Lambda(")
    assert "Lambda(" in repr(fl.Chain(fl.Lambda(function)))


def test_return_raises_with_its_value() -> None:
    with pytest.raises(ReturnException) as caught:
        fl.Return()(3)
    assert caught.value.value == 3


def test_return_ends_the_call_of_the_chain_around_it() -> None:
    chain = fl.Chain(fl.Chain(fl.Lambda(lambda x: x + 1), fl.Return(), fl.Lambda(lambda x: x * 100)))
    chain.append(fl.Lambda(lambda x: x * 2))
    assert chain(1) == 4


def test_breakpoint_opens_the_builtin_debugger_and_returns_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    monkeypatch.setattr(builtins, "breakpoint", lambda: opened.append(True))
    layer = fl.Breakpoint(vscode=False)
    assert layer(1) == 1 and layer(1, 2) == (1, 2) and layer() == ()
    assert len(opened) == 3


def test_breakpoint_opens_debugpy_only_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    debugpy = ModuleType("debugpy")
    debugpy.__dict__["breakpoint"] = lambda: opened.append(True)
    monkeypatch.setitem(sys.modules, "debugpy", debugpy)
    layer = fl.Breakpoint()
    assert isinstance(layer, fl.ContextModule) and opened == []
    assert layer(1) == 1 and opened == [True]
