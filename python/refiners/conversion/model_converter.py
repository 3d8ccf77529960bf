"""Copy weights from a model to another one that computes the same with other names and another structure."""

from collections import Counter, defaultdict
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from refiners.conversion.comparison import OutputComparison
from refiners.conversion.signatures import (
    TORCH_BASIC_LAYERS,
    ModelTypeShape,
    basic_layers,
    basic_type,
    difference_table,
    signature,
    translate,
    unknown_weighted_leaves,
)
from refiners.conversion.tracing import ModuleArgs, ModuleArgsDict, run_observed
from refiners.conversion.transfer import convert_state_dict, transferred_state_dict
from refiners.fluxion.utils import save_to_safetensors

__all__ = ["TORCH_BASIC_LAYERS", "ConversionStage", "ModelConverter", "ModelTypeShape", "ModuleArgsDict"]


class ConversionStage(Enum):
    """How far a conversion got: each stage names what is known to hold."""

    INIT = 1
    BASIC_LAYERS_MATCH = 2
    SHAPE_AND_LAYERS_MATCH = 3
    MODELS_OUTPUT_AGREE = 4


class ModelConverter:
    """Convert the weights of a source model to a target model that is structured differently but computes the same.

    Both models are run and the layers of equal type and parameter shapes are matched in execution order; the target
    then receives the weights, and the outputs of the matched layers are compared. Models run in evaluation mode and
    without gradients; their modes are restored, and no hook stays behind, also when a model raises.

    Attributes:
        stage: How far the conversion got. It never goes back.
    """

    def __init__(
        self,
        source_model: nn.Module,
        target_model: nn.Module,
        source_keys_to_skip: list[str] | None = None,
        target_keys_to_skip: list[str] | None = None,
        custom_layer_mapping: dict[type[nn.Module], type[nn.Module]] | None = None,
        threshold: float = 1e-5,
        skip_output_check: bool = False,
        skip_init_check: bool = False,
        verbose: bool = True,
    ) -> None:
        """Set the conversion up; nothing runs yet.

        Args:
            source_model: The model that has the weights.
            target_model: The model that receives them.
            source_keys_to_skip: Names of layers of the source, as in `named_modules`, that take no part.
            target_keys_to_skip: The same for the target; these layers keep the weights they have.
            custom_layer_mapping: Types of layers to treat as basic, each type of the source with that of the target.
            threshold: The norm that the difference of two outputs may have.
            skip_output_check: Whether to end once the weights are loaded, without comparing outputs.
            skip_init_check: Whether to go without the count of basic layers before the models run.
            verbose: Whether to print the progress, and why a stage failed.
        """
        self.source_model = source_model
        self.target_model = target_model
        self.source_keys_to_skip = source_keys_to_skip or []
        self.target_keys_to_skip = target_keys_to_skip or []
        self.custom_layer_mapping = custom_layer_mapping or {}
        self.threshold = threshold
        self.skip_output_check = skip_output_check
        self.skip_init_check = skip_init_check
        self.verbose = verbose
        self.stage = ConversionStage.INIT
        self._mapping: dict[str, str] | None = None

    def __repr__(self) -> str:
        source, target = type(self.source_model).__name__, type(self.target_model).__name__
        return f"ModelConverter(source_model={source}, target_model={target}, stage={self.stage})"

    def __bool__(self) -> bool:
        """Whether the weights may be taken out of the converter.

        This is so from the stage `SHAPE_AND_LAYERS_MATCH` on: the weights are loaded, and the comparison of the outputs
        may still be to come or may have failed. Only `run` and the stage `MODELS_OUTPUT_AGREE` say that it succeeded.
        With `skip_output_check` the threshold is one stage earlier.
        """
        needed = (
            ConversionStage.BASIC_LAYERS_MATCH if self.skip_output_check else ConversionStage.SHAPE_AND_LAYERS_MATCH
        )
        return self.stage.value >= needed.value

    def run(self, source_args: ModuleArgs, target_args: ModuleArgs | None = None) -> bool:
        """Convert, from the current stage on.

        Args:
            source_args: The arguments of the source model: a tuple, a `ModuleArgsDict`, or a dict of keyword arguments.
            target_args: The arguments of the target model, those of the source by default.

        Returns:
            Whether the conversion is complete; if not, `stage` is the one that failed.

        Raises:
            KeyError: If the state dict of the target has a key of a layer that did not run.
        """
        runners = {
            ConversionStage.INIT: self._run_init_stage,
            ConversionStage.BASIC_LAYERS_MATCH: lambda: self._run_basic_layers_match_stage(source_args, target_args),
            ConversionStage.SHAPE_AND_LAYERS_MATCH: lambda: self._run_shape_and_layers_match_stage(
                source_args, target_args
            ),
        }
        last = ConversionStage.SHAPE_AND_LAYERS_MATCH if self.skip_output_check else ConversionStage.MODELS_OUTPUT_AGREE
        while self.stage.value < last.value:
            if not runners[self.stage]():
                self._log(f"Conversion failed at stage {self.stage.value}")
                return False
            self._increment_stage()
        return True

    def get_state_dict(self) -> dict[str, Tensor]:
        """Give the state dict of the target model.

        Raises:
            ValueError: If the weights are not there yet.
        """
        self._loaded_mapping()
        return self.target_model.state_dict()

    def get_mapping(self) -> dict[str, str]:
        """Give the names of the target's layers, each with that of the source's layer it took its weights from.

        Raises:
            ValueError: If the weights are not there yet.
        """
        return self._loaded_mapping()

    def save_to_safetensors(self, path: Path | str, metadata: dict[str, str] | None = None, half: bool = False) -> None:
        """Save the state dict of the target model.

        Args:
            path: The file.
            metadata: Texts to store in the file.
            half: Whether to store floating-point tensors in float16; integers, such as counters, stay exact.

        Raises:
            ValueError: If the weights are not there yet.
        """
        tensors = self.get_state_dict()
        if half:
            tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        save_to_safetensors(path, tensors, metadata=metadata)

    def map_state_dicts(self, source_args: ModuleArgs, target_args: ModuleArgs | None = None) -> dict[str, str] | None:
        """Run both models and match their layers: the k-th of each signature in one with the k-th in the other.

        Args:
            source_args: The arguments of the source model.
            target_args: The arguments of the target model, those of the source by default.

        Returns:
            The names of the target's layers, each with its counterpart in the source, or None if for some signature
            the two models do not run equally many layers (a table is printed).
        """
        if target_args is None:
            target_args = source_args
        source_names = self._trace(self.source_model, source_args, self._source_layers())
        target_names = self._trace(self.target_model, target_args, self._target_layers())
        source_counts = Counter({layer: len(names) for layer, names in source_names.items()})
        target_counts = Counter({layer: len(names) for layer, names in target_names.items()})
        if source_counts != target_counts:
            self._log(f"The models run different layers:\n{difference_table(source_counts, target_counts)}")
            return None
        return {
            target_name: source_name
            for layer, names in target_names.items()
            for target_name, source_name in zip(names, source_names[layer])
        }

    def compare_models(
        self, source_args: ModuleArgs, target_args: ModuleArgs | None = None, threshold: float = 1e-5
    ) -> bool:
        """Run both models and compare the outputs of their layers, paired as by `map_state_dicts`.

        Args:
            source_args: The arguments of the source model.
            target_args: The arguments of the target model, those of the source by default.
            threshold: The norm that the difference of two outputs, in the shape of the source's, may have.

        Returns:
            Whether all outputs agree; if not, the first that does not is printed with its neighbours.
        """
        comparison = OutputComparison(self.custom_layer_mapping, threshold)
        comparison.run_source(self.source_model, source_args, self._source_layers())
        target_args = source_args if target_args is None else target_args
        comparison.run_target(self.target_model, target_args, self._target_layers())
        if comparison.failure is not None:
            self._log(f"The models disagree: {comparison.failure}")
        return comparison.failure is None

    def get_module_signature(self, module: nn.Module) -> ModelTypeShape:
        """Describe a basic layer by its basic type and the shapes of its parameters.

        Raises:
            AssertionError: If the module is not a basic layer.
        """
        return signature(module, self.custom_layer_mapping)

    def _run_init_stage(self) -> bool:
        self._log("Stage 0 -> 1 - Comparing the basic layers of both models")
        return self.skip_init_check or (self._all_leaves_are_basic() and self._basic_layers_are_as_many())

    def _run_basic_layers_match_stage(self, source_args: ModuleArgs, target_args: ModuleArgs | None = None) -> bool:
        self._log("Stage 1 -> 2 - Matching the layers that run by shape, and loading the weights")
        mapping = self.map_state_dicts(source_args, target_args)
        if mapping is None:
            return False
        tensors = transferred_state_dict(self.source_model, self.target_model, mapping, keep=self.target_keys_to_skip)
        self.target_model.load_state_dict(tensors)
        self._mapping = mapping
        return True

    def _run_shape_and_layers_match_stage(self, source_args: ModuleArgs, target_args: ModuleArgs | None = None) -> bool:
        self._log("Stage 2 -> 3 - Comparing the outputs of the layers")
        try:
            return self.compare_models(source_args, target_args, self.threshold)
        except Exception as error:
            self._log(f"The comparison raised {type(error).__name__}: {error}")
            return False

    @staticmethod
    def _convert_state_dict(
        source_state_dict: dict[str, Tensor], target_state_dict: dict[str, Tensor], state_dict_mapping: dict[str, str]
    ) -> dict[str, Tensor]:
        """Give each key of the target the tensor of its counterpart; the mapping is as `map_state_dicts` gives it."""
        return convert_state_dict(source_state_dict, target_state_dict, state_dict_mapping)

    def _increment_stage(self) -> None:
        self.stage = ConversionStage(self.stage.value + 1)

    def _loaded_mapping(self) -> dict[str, str]:
        if not self or self._mapping is None:
            raise ValueError(f"The conversion process is not done yet. Run the converter first, it is at {self.stage}")
        return self._mapping

    def _source_layers(self) -> dict[str, nn.Module]:
        return basic_layers(self.source_model, self.custom_layer_mapping, self.source_keys_to_skip)

    def _target_layers(self) -> dict[str, nn.Module]:
        return basic_layers(self.target_model, self.custom_layer_mapping, self.target_keys_to_skip)

    def _trace(
        self, model: nn.Module, args: ModuleArgs, layers: dict[str, nn.Module]
    ) -> dict[ModelTypeShape, list[str]]:
        """Run a model; list the names of its layers in execution order, by the signature they have in the target."""
        mapping = self.custom_layer_mapping if model is self.source_model else {}
        names: dict[ModelTypeShape, list[str]] = defaultdict(list)

        def record(name: str, _output: Any) -> None:
            names[translate(signature(layers[name], self.custom_layer_mapping), mapping)].append(name)

        run_observed(model, args, layers, record)
        return dict(names)

    def _basic_layers_are_as_many(self) -> bool:
        mapping = self.custom_layer_mapping
        source_types = (basic_type(layer, mapping) for layer in self._source_layers().values())
        target_types = (basic_type(layer, mapping) for layer in self._target_layers().values())
        source = Counter((mapping.get(cls, cls), ()) for cls in source_types if cls is not None)
        target = Counter((cls, ()) for cls in target_types if cls is not None)
        if source != target:
            self._log(f"The models have different basic layers:\n{difference_table(source, target)}")
        return source == target

    def _all_leaves_are_basic(self) -> bool:
        unknown = {
            "source": unknown_weighted_leaves(self.source_model, self.custom_layer_mapping, self.source_keys_to_skip),
            "target": unknown_weighted_leaves(self.target_model, self.custom_layer_mapping, self.target_keys_to_skip),
        }
        for side, leaves in unknown.items():
            for name, module in leaves.items():
                kind = type(module).__name__
                self._log(f"{name!r} of the {side} is a {kind}: it has weights and no basic type, map it or skip it")
        return not any(unknown.values())

    def _log(self, message: str) -> None:
        if self.verbose:
            print(message)
