"""All kinds, in the order in which they are asked."""

from refiners.conversion.lora.kinds.decomposed import Decomposed
from refiners.conversion.lora.kinds.difference import DIFFERENCES
from refiners.conversion.lora.kinds.hadamard import Hadamard
from refiners.conversion.lora.kinds.kind import Kind
from refiners.conversion.lora.kinds.kronecker import Kronecker
from refiners.conversion.lora.kinds.low_rank import LowRank
from refiners.conversion.lora.kinds.recognised import RECOGNISED
from refiners.conversion.lora.kinds.rescaled import LycorisRescaled, PeftRescaled

LOW_RANK = LowRank()
KINDS: tuple[Kind, ...] = (  # in the order in which they are asked
    *RECOGNISED,
    Decomposed(),
    Hadamard(),
    Kronecker(),
    LycorisRescaled(),
    PeftRescaled(),
    LOW_RANK,
    *DIFFERENCES,
)
