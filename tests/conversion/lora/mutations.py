"""Ways to damage a file of safetensors, or to write an odd one: functions of a file and of random numbers."""

from __future__ import annotations

import random

import mutated_headers
import mutated_names
import mutated_tensors
from drafts import MUTATIONS, Draft

NAMES = sorted(MUTATIONS)
assert mutated_headers and mutated_names and mutated_tensors  # they fill the table


def mutate(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage a file of safetensors."""
    draft = Draft(content)
    changed = MUTATIONS[name](draft, rng)
    return draft.write() if changed is None else changed
