"""The native library: loaded once, where it is there and fits; where not, one warning, and torch does all the work."""

from __future__ import annotations

import ctypes
import sys
import warnings
from pathlib import Path

import torch

from refiners.ops.library_file import BuildRecord, UnusableLibraryError, check_record, read_record
from refiners.ops.settings import ISAS, OPERATORS, Settings, read_settings

LIBRARY = torch.library.Library("refiners", "DEF")
PLANS = ("portable", "update", "library", "block")  # in the order of enum LoraLinearPlan, lora_linear_config.h
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*CUDA_DTYPES, torch.float64)
WITH_ONE_KERNEL = ("attention", "conv2d", "geglu", "group_norm", "linear", "weighted_sum")  # on the CPU, or none
WITH_CUDA_KERNELS = ("lora_linear", "weighted_sum")
PACKAGE = Path(__file__).parent.parent
_ADVICE = "Everything works through torch, slower; to build it: pip install . (see CONTRIBUTING.md)."


class NativeLibraryWarning(UserWarning):
    """The native library, or a variable that steers it, is not as one would expect; results do not change."""


class NativeLibrary:
    """The state of the native library in this process.

    Attributes:
        path: The library file, if there is one.
        record: How it was built, if that can be read.
        problem: Why it is not used, or None.
        isa: The instruction set that the CPU kernels use, one of `settings.ISAS`.
        isa_reason: Why this one.
    """

    def __init__(self, package: Path = PACKAGE, settings: Settings | None = None) -> None:
        self.settings = read_settings() if settings is None else settings
        self.path: Path | None = next(iter(sorted(package.glob("_C.*"))), None)
        self.record: BuildRecord | None = None
        self.problem: str | None = None
        self.isa = "portable"
        self.isa_reason = "the native library is not loaded"
        self._functions: ctypes.CDLL | None = None
        self._has_kernel: dict[tuple[str, torch.dtype], bool] = {}  # these are asked in each call of each layer
        self._on_cuda: frozenset[str] = frozenset()
        self._takes_block: dict[tuple[torch.dtype, torch.device], bool] = {}
        try:
            self._load(package)
        except (UnusableLibraryError, OSError, RuntimeError) as error:
            self.problem = f"{self.path} cannot be used: {str(error).strip()}" if self.path else str(error)
            built = f" It is {self.record}." if self.record else ""
            warn(f"The native library of refiners is not used. {self.problem.rstrip('.')}.{built} {_ADVICE}")

    @property
    def loaded(self) -> bool:
        """Whether the library runs in this process."""
        return self._functions is not None

    def _load(self, package: Path) -> None:
        for problem in self.settings.problems:
            warn(f"{problem}. It is ignored.")
        if self.settings.disabled >= set(OPERATORS):
            self.problem = "REFINERS_DISABLE_NATIVE names every operator"
            return
        if self.path is None:
            raise UnusableLibraryError(_why_missing(package))
        self.record = read_record(self.path)
        check_record(self.record)
        torch.ops.load_library(self.path)
        self._functions = _bind(ctypes.CDLL(str(self.path)))
        if self.record.cuda is not None:
            self._on_cuda = frozenset(WITH_CUDA_KERNELS) - self.settings.disabled
        for name in self.settings.disabled:
            self.use_kernels(name, False)
        index: int = self._functions.refiners_best_cpu_isa()
        best = ISAS[index]
        self.isa, self.isa_reason = best, "the best that this CPU and the library have"
        if self.settings.isa is not None:
            self._force(self.settings.isa, best)
        self._forget_choices()

    def _force(self, isa: str, best: str) -> None:
        if self.use_isa(isa):
            self.isa_reason = f"REFINERS_CPU_ISA={isa}"
        else:
            self.isa_reason = f"REFINERS_CPU_ISA={isa}, which this CPU or this build lacks; {best} is the best there is"
            warn(f"{self.isa_reason}. It is used.")

    def use_isa(self, isa: str) -> bool:
        """Let the CPU kernels use an instruction set from now on; False, and nothing changes, where that cannot be."""
        if isa not in ISAS:
            raise ValueError(f"isa must be one of {', '.join(ISAS)}, got {isa}")
        if self._functions is None:
            return isa == "portable"
        if self._functions.refiners_use_cpu_isa(ISAS.index(isa)):
            return False
        self._forget_choices()
        self.isa, self.isa_reason = isa, "chosen by the program"
        return True

    def use_kernels(self, operator: str, enabled: bool) -> None:
        """Switch the kernels of an operator on or off."""
        if self._functions is not None:
            self._functions.refiners_use_kernels(operator.encode(), int(enabled))
        self._forget_choices()

    def why_no_cuda_kernels(self, operator: str, dtype: torch.dtype, device: int = 0) -> str | None:
        """Give the reason why the kernels of an operator do not run on a CUDA device; None where they do."""
        if self._functions is None or self.record is None:
            return self.problem
        if operator in self.settings.disabled:
            return f"REFINERS_DISABLE_NATIVE names {operator}"
        if self.record.cuda is None:
            return "the library was built without CUDA"
        if dtype not in CUDA_DTYPES:
            return "no kernel for this dtype"
        function = self._functions[f"refiners_find_{operator}_cuda_problem"]
        function.restype = ctypes.c_char_p
        problem: bytes | None = function(device)
        return None if problem is None else problem.decode()

    def explain_lora_linear(self, dtype: str, has_block: bool) -> tuple[str, str]:
        """Give what `lora_linear` does on the CPU with this dtype, and the reason."""
        if self._functions is None:
            return "portable", self.problem or ""
        if "lora_linear" in self.settings.disabled:
            return "portable", "REFINERS_DISABLE_NATIVE names lora_linear"
        text: bytes = self._functions.refiners_explain_lora_linear(dtype.encode(), int(has_block))
        plan, _, reason = text.decode().partition(": ")
        return plan, reason

    def force_lora_linear_plan(self, plan: str | None) -> None:
        """Let `lora_linear` on the CPU take a plan wherever it can run at all, for tests and measurements.

        Args:
            plan: One of `PLANS`; `None` gives the choice back.
        """
        if self._functions is not None:
            self._functions.refiners_force_lora_linear_plan(-1 if plan is None else PLANS.index(plan))
        self._forget_choices()

    def _forget_choices(self) -> None:
        self._takes_block.clear()
        for operator in WITH_ONE_KERNEL:  # asked now, since a compiler that traces a call cannot ask the library
            for dtype in DTYPES:
                name = str(dtype).removeprefix("torch.")
                self._has_kernel[operator, dtype] = self.explain(operator, name)[0] == "kernel"

    def explain(self, operator: str, dtype: str) -> tuple[str, str]:
        """Give what an operator does on the CPU with a dtype, `kernel` or `portable`, and the reason."""
        if self._functions is None:
            return "portable", self.problem or ""
        if operator in self.settings.disabled:
            return "portable", f"REFINERS_DISABLE_NATIVE names {operator}"
        function = self._functions[f"refiners_explain_{operator}"]
        function.restype = ctypes.c_char_p
        text: bytes = function(dtype.encode())
        plan, _, reason = text.decode().partition(": ")
        return plan, reason

    def has_kernel(self, operator: str, dtype: torch.dtype) -> bool:
        """Whether an operator has a kernel for a dtype on the CPU, and uses it."""
        return self._has_kernel.get((operator, dtype), False)

    def has_kernel_on(self, operator: str, dtype: torch.dtype, device_type: str) -> bool:
        """Whether an operator may have a kernel for a dtype on a kind of device.

        On CUDA the operator asks the very device: one that is too old takes the portable path in the operator.
        """
        if device_type == "cuda":
            return dtype in CUDA_DTYPES and operator in self._on_cuda
        return device_type == "cpu" and self.has_kernel(operator, dtype)

    def takes_lora_block(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether `lora_linear` uses a block on a device."""
        key = dtype, device
        known = self._takes_block.get(key)
        if known is None:
            if device.type == "cpu":
                name = str(dtype).removeprefix("torch.")
                known = self.explain_lora_linear(name, has_block=True)[0] == "block"
            else:
                index = device.index or 0
                known = device.type == "cuda" and self.why_no_cuda_kernels("lora_linear", dtype, index) is None
            self._takes_block[key] = known
        return known


def _bind(functions: ctypes.CDLL) -> ctypes.CDLL:
    functions.refiners_explain_lora_linear.restype = ctypes.c_char_p
    return functions


def _why_missing(package: Path) -> str:
    note = package / "_build_note.txt"  # written by setup.py where it could not build
    return note.read_text().strip() if note.exists() else f"It was not built: there is no _C library in {package}"


def warn(message: str) -> None:
    """Warn; where warnings are errors, print instead: a missing library never stops an import."""
    try:
        warnings.warn(message, NativeLibraryWarning, stacklevel=2)
    except NativeLibraryWarning:
        print(f"NativeLibraryWarning: {message}", file=sys.stderr)


native = NativeLibrary()
