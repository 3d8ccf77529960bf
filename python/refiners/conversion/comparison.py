"""Compare the outputs of the layers of two models, holding the outputs of one of them only."""

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refiners.conversion.signatures import LayerMapping, ModelTypeShape, signature, translate
from refiners.conversion.tracing import ModuleArgs, output_tensors, run_observed
from refiners.fluxion.utils import norm


class OutputComparison:
    """The comparison of the layers of a target model with those of a source model.

    Layers are paired as their weights are: the k-th execution of a signature in the source with the k-th in the target.
    The source runs first and its outputs are kept (copies, since a later layer may write in place); each is let go as
    soon as the target has produced its counterpart, so that at most one model's outputs are alive.

    Attributes:
        failure: What went wrong first, or None while all outputs agree.
    """

    def __init__(self, mapping: LayerMapping, threshold: float) -> None:
        self.mapping = mapping
        self.threshold = threshold
        self.failure: str | None = None
        self._source_order: list[str] = []
        self._pending: dict[ModelTypeShape, deque[tuple[int, list[Tensor]]]] = defaultdict(deque)

    def run_source(self, model: nn.Module, args: ModuleArgs, layers: Mapping[str, nn.Module]) -> None:
        """Run the source model and keep the outputs of its layers."""
        signatures = {name: translate(signature(layer, self.mapping), self.mapping) for name, layer in layers.items()}

        def keep(name: str, output: Any) -> None:
            copies = [tensor.clone() for tensor in output_tensors(output)]
            self._pending[signatures[name]].append((len(self._source_order), copies))
            self._source_order.append(name)

        run_observed(model, args, layers, keep)

    def run_target(self, model: nn.Module, args: ModuleArgs, layers: Mapping[str, nn.Module]) -> None:
        """Run the target model and compare the output of each of its layers with its counterpart."""
        order: list[str] = []
        failed_at: tuple[int | None, int, str] | None = None  # places in the two orders, and the problem

        def check(name: str, output: Any) -> None:
            nonlocal failed_at
            order.append(name)
            if failed_at is not None:
                return
            pending = self._pending[signature(layers[name], self.mapping)]
            source_place, expected = pending.popleft() if pending else (None, [])
            problem = _difference(expected, output_tensors(output), self.threshold)
            if source_place is None:
                problem = "the source has no counterpart"
            if problem is not None:
                self._pending.clear()
                failed_at = (source_place, len(order) - 1, problem)

        run_observed(model, args, layers, check)
        if failed_at is not None:
            self.failure = self._explain(order, *failed_at)
        elif unmatched := sorted(place for records in self._pending.values() for place, _ in records):
            names = ", ".join(self._source_order[place] for place in unmatched)
            self.failure = f"the target has no counterpart for these layers of the source: {names}"
        self._pending.clear()

    def _explain(self, order: list[str], source_place: int | None, target_place: int, problem: str) -> str:
        lines = [f"the outputs of a layer differ: {problem}"]
        if source_place is not None:
            lines.append(f"  source: {_neighbourhood(self._source_order, source_place)}")
        lines.append(f"  target: {_neighbourhood(order, target_place)}")
        return "\n".join(lines)


def _neighbourhood(order: list[str], place: int) -> str:
    before = repr(order[place - 1]) if place > 0 else "the input"
    after = repr(order[place + 1]) if place + 1 < len(order) else "the output"
    return f"{order[place]!r}, between {before} and {after}"


def _difference(expected: list[Tensor], outputs: list[Tensor], threshold: float) -> str | None:
    if len(expected) != len(outputs):
        return f"{len(expected)} tensors in the source, {len(outputs)} in the target"
    for source, target in zip(expected, outputs):
        if source.numel() != target.numel():
            return f"shape {tuple(source.shape)} in the source, {tuple(target.shape)} in the target"
        dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
        reshaped = target.reshape(source.shape).to(source.device, dtype)
        distance = norm(source.to(dtype) - reshaped).item()
        if not distance <= threshold:  # a nan is a difference too
            return f"norm of the difference {distance:.2e}, threshold {threshold:.2e}"
    return None
