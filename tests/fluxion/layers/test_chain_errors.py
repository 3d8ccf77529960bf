"""What a failing layer says: which layer it is, with which arguments, and what the original problem was."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError, ReturnException


class CustomError(Exception):
    pass


def fail(*_args: Any) -> Any:
    raise CustomError("out of luck")


def message_of(chain: fl.Module, *args: Any) -> str:
    with pytest.raises(ChainError) as caught:
        chain(*args)
    return str(caught.value)


def test_a_chain_error_is_a_runtime_error_with_a_message() -> None:
    assert issubclass(ChainError, RuntimeError)
    assert str(ChainError("text")) == "text"
    with pytest.raises(TypeError):
        ChainError(message="text")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("cls", [fl.Chain, fl.Residual, fl.Passthrough, fl.Parallel, fl.Distribute])
def test_these_chains_wrap_the_errors_of_their_children(cls: type[fl.Chain]) -> None:
    message = message_of(cls(fl.Lambda(fail)), 1)
    assert "out of luck" in message and "CustomError" in message


@pytest.mark.parametrize(
    "make", [lambda leaf: fl.Sum(leaf), lambda leaf: fl.Concatenate(leaf), lambda leaf: fl.Matmul(leaf, leaf)]
)
def test_these_chains_do_not_wrap(make: Callable[[fl.Module], fl.Chain]) -> None:
    with pytest.raises(CustomError, match="out of luck"):
        make(fl.Lambda(fail))(1)


def test_a_layer_called_on_its_own_raises_its_own_error() -> None:
    with pytest.raises(AssertionError, match="must match number of sub-modules"):
        fl.Distribute(fl.Identity(), fl.Identity())(1)
    with pytest.raises(RuntimeError) as caught:
        fl.Linear(2, 1)(torch.zeros(1, 3))
    assert not isinstance(caught.value, ChainError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_errors_that_are_not_exceptions_pass_through(error: type[BaseException]) -> None:
    def stop(_x: int) -> None:
        raise error

    with pytest.raises(error):
        fl.Chain(fl.Chain(fl.Lambda(stop)))(1)


def test_the_type_name_is_not_added_to_a_text_that_already_speaks_of_an_error() -> None:
    def speak(_x: int) -> None:
        raise CustomError("an Error of its own")

    message = message_of(fl.Chain(fl.Lambda(speak)), 1)
    assert "an Error of its own" in message and "CustomError:" not in message


def test_the_original_exception_is_chained() -> None:
    with pytest.raises(ChainError) as caught:
        fl.Chain(fl.Chain(fl.Lambda(fail)))(1)
    causes: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(type(cause) is CustomError for cause in causes)


def test_the_message_of_nested_chains_holds_the_inner_ones_first() -> None:
    message = message_of(fl.Chain(fl.Sum(fl.Passthrough(fl.Lambda(fail)), fl.ReLU())), 1)
    assert message.index("out of luck") < message.index("-" * 15)
    assert message.index("Sum.Passthrough.Lambda") < message.index(">>> (SUM)")


def test_the_failing_child_is_marked_with_its_path() -> None:
    chain = fl.Chain(fl.Identity(), fl.Chain(fl.Identity(), fl.Linear(2, 3), fl.Linear(5, 1)))
    message = message_of(chain, torch.zeros(1, 2))
    marked = [line for line in message.splitlines() if ">>> " in line]
    assert len(marked) == 2, "one for each level"
    assert ">>> Linear(in_features=5, out_features=1, device=cpu, dtype=float32)" in marked[0]
    assert [line.split(" | ")[1].split()[0] for line in marked] == ["Chain.Linear_2", "Chain"]


def test_a_failing_child_is_shown_in_a_long_chain() -> None:
    leaves = [layer for _ in range(30) for layer in (fl.Identity(), fl.ReLU())]
    message = message_of(fl.Chain(*leaves, fl.Lambda(fail)), torch.zeros(1))
    assert ">>> Lambda(fail" in message
    assert len(message.splitlines()) < 60


def test_the_tree_in_a_message_is_cut_in_depth_and_length() -> None:
    deep = fl.Chain(fl.Chain(fl.Chain(fl.Chain(fl.Sigmoid()))))
    leaves = [layer for _ in range(30) for layer in (fl.Identity(), fl.ReLU())]
    message = message_of(fl.Chain(fl.Lambda(fail), deep, *leaves))
    drawing = message.split("-" * 15 + "\n")[1].splitlines()
    assert drawing[0] == "(CHAIN)" and len(drawing) <= 11
    assert drawing[4] == "    │       └── (CHAIN) ..." and "Sigmoid" not in message


def test_a_message_begins_with_the_type_then_frames_without_machinery_and_text_without_blank_lines() -> None:
    class Trouble(Exception):
        pass

    def _private() -> None:
        raise Trouble("one\n\n  \ntwo")

    def public(_x: int) -> None:
        _private()

    lines = message_of(fl.Chain(fl.Chain(fl.Chain(fl.Lambda(public)))), 1).splitlines()
    text = lines[: lines.index("-" * 15)]
    assert [line.split(" in ")[-1] for line in text] == ["Trouble:", "public", "one", "two"]


def test_a_failing_child_is_shown_among_equal_ones() -> None:
    def fail_third(_x: int, count: list[int] = []) -> int:  # noqa: B006
        count.append(1)
        if len(count) == 3:
            raise CustomError
        return 1

    message = message_of(fl.Chain(fl.Lambda(fail_third), fl.Lambda(fail_third), fl.Lambda(fail_third)), 1)
    assert message.count(">>> ") == 1 and "| Lambda_3" in message


def test_arguments_are_listed_with_tuples_flattened() -> None:
    chain = fl.Chain(fl.Lambda(lambda: ((1, ("two", torch.zeros(1, 3))), [4])), fl.Lambda(fail))
    lines = message_of(chain).splitlines()
    assert "0: 1" in lines and "1: two" in lines and "3: [4]" in lines
    assert any(line.startswith("2: Tensor(shape=(1, 3), dtype=float32, device=cpu") for line in lines)


def test_pretty_print_args_describes_each_argument_on_a_line() -> None:
    assert fl.Chain._pretty_print_args(1, (2, (None,))) == "0: 1\n1: 2\n2: None"


def test_the_protected_call_runs_a_child_and_wraps_its_error() -> None:
    chain = fl.Chain(fl.Identity(), fl.Lambda(fail))
    assert chain._call_layer(chain[0], "Identity", 3) == 3
    with pytest.raises(ChainError, match="out of luck"):
        chain._call_layer(chain[1], "Lambda", 3)


def test_a_name_without_a_child_shows_the_unmarked_tree() -> None:
    chain = fl.Chain(fl.Linear(1, 1), fl.Linear(1, 1), fl.Chain(fl.Linear(1, 1), fl.Linear(2, 1)))
    assert chain._show_error_in_tree("Chain.Linear_2") == (
        "(CHAIN)\n"
        "    ├── Linear(in_features=1, out_features=1, device=cpu, dtype=float32) (x2)\n"
        "    └── (CHAIN)\n"
        "        ├── Linear(in_features=1, out_features=1, device=cpu, dtype=float32) #1\n"
        "        └── Linear(in_features=2, out_features=1, device=cpu, dtype=float32) #2"
    )


def test_the_tree_of_a_name_marks_its_child() -> None:
    chain = fl.Chain(fl.Identity(), fl.ReLU())
    lines = chain._show_error_in_tree("ReLU").splitlines()
    assert lines[0] == "(CHAIN)" and ">>> ReLU() | ReLU" in lines[2]
    assert len(fl.Chain(*(fl.Identity() for _ in range(50)))._show_error_in_tree("Identity_7", 4).splitlines()) <= 5


@pytest.mark.parametrize("args", [(torch.zeros(2, 3, device="meta"),), (object(),), ()])
def test_any_argument_can_be_described(args: tuple[Any, ...]) -> None:
    assert "out of luck" in message_of(fl.Chain(fl.Lambda(fail)), *args)


def test_meta_tensors_do_not_hide_the_problem() -> None:
    chain = fl.Chain(fl.Linear(2, 3, device="meta"), fl.Linear(5, 1, device="meta"))
    message = message_of(chain, torch.zeros(1, 2, device="meta"))
    assert "device=meta" in message and "RuntimeError" in message


class Unprintable(fl.Module):
    def __str__(self) -> str:
        raise ValueError("no words")

    def forward(self, _x: Any) -> Any:
        raise CustomError("out of luck")


class Under_Scored(fl.Chain):
    pass


@pytest.mark.parametrize(
    "chain",
    [
        fl.Chain(Unprintable()),
        Under_Scored(Under_Scored(fl.Lambda(fail)), Under_Scored()),
        fl.Chain(fl.Lambda(operator.attrgetter("x")), fl.Identity()),
        fl.Chain(nn.Sequential(Unprintable())),
    ],
    ids=["unprintable", "underscores", "builtin", "foreign"],
)
def test_the_report_never_hides_the_problem(chain: fl.Chain) -> None:
    message = message_of(chain, 1)
    assert "out of luck" in message or "no attribute 'x'" in message


def test_an_unprintable_argument_or_error_does_not_hide_the_problem() -> None:
    class Mute:
        def __str__(self) -> str:
            raise ValueError("no words")

        __repr__ = __str__

    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    def fail_mutely(_x: Any) -> None:
        raise MuteError

    assert "out of luck" in message_of(fl.Chain(fl.Lambda(fail)), Mute())
    assert "MuteError" in message_of(fl.Chain(fl.Lambda(fail_mutely)), 1)


def test_reporting_reads_no_large_or_remote_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Size] = []
    for name in ("item", "tolist", "cpu"):
        original = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any, original: Any = original, **options: Any) -> Any:
            read.append(self.shape)
            return original(self, *args, **options)

        monkeypatch.setattr(Tensor, name, spy)
    message_of(fl.Chain(fl.Chain(fl.Lambda(fail))), torch.zeros(2, device="meta"))
    assert read == []


def test_return_exceptions_carry_their_value() -> None:
    assert issubclass(ReturnException, Exception)
    with pytest.raises(ReturnException) as caught:
        fl.Return()(3)
    assert caught.value.value == 3


class Hinting(fl.Chain):
    def _hint(self, *args: Any) -> str:
        return f"the child got {args}" if args != (0,) else ""


class FailingHint(fl.Chain):
    def _hint(self, *args: Any) -> str:
        raise KeyError("hint")


def test_a_chain_may_say_what_the_cause_may_be() -> None:
    message = message_of(fl.Chain(Hinting(fl.Lambda(lambda x: x + 1), fl.Lambda(fail))), 2)
    assert message.count("the child got (3,)") == 1
    assert "the child got" not in message_of(Hinting(fl.Lambda(fail)), 0)


def test_a_hint_that_fails_hides_nothing() -> None:
    message = message_of(FailingHint(fl.Lambda(fail)), 1)
    assert "out of luck" in message and "<KeyError in the hint of FailingHint>" in message


def test_a_failure_deep_in_a_large_tree_takes_few_lines() -> None:
    chain = fl.Chain(*(fl.ReLU() if i % 2 else fl.Identity() for i in range(20)), fl.Lambda(fail))
    for _ in range(9):
        chain = fl.Chain(fl.Identity(), fl.ReLU(), chain, fl.Identity(), fl.ReLU())
    views = message_of(chain, torch.zeros(1)).split("-" * 15 + "\n")[1:]
    assert [view.count(">>> ") for view in views] == [1] * 10
    assert [len(view.splitlines()) for view in views] == [7, *[4] * 9]  # five and one of the tree, three of it; the x


def test_a_long_argument_is_shown_in_part() -> None:
    described = fl.Chain._pretty_print_args([0] * 1000, "one\ntwo", "")
    assert [len(line) for line in described.splitlines()] == [len("0: ") + 303, len("1: one..."), len("2: ")]


def test_a_checkpoint_ends_a_call_early_without_an_error() -> None:
    chain = fl.Chain(fl.Linear(3, 3), fl.Chain(fl.GeLU(), fl.Linear(3, 3)), fl.ReLU())
    x = torch.randn(2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(chain(x).sum(), x)
    # The second call stops where all that was saved is there again: before the end of the chain.
    y = torch.utils.checkpoint.checkpoint(chain, x, use_reentrant=False)
    assert torch.equal(*torch.autograd.grad(y.sum(), x), expected)
