"""The command `python -m refiners demo`."""

import os
from collections.abc import Sequence
from time import perf_counter

from refiners.demo.errors import DemoError
from refiners.demo.options import parse_options
from refiners.options import complain


def main(argv: Sequence[str]) -> int:
    """Run the demo.

    Args:
        argv: The options; `--help` lists them.

    Returns:
        0; 1 if a check failed; 2 if something that the user can mend stopped it, after one line that says what.

    Raises:
        SystemExit: With code 2, after a one-line error, if an option is wrong; with code 0 after the help.
    """
    options = parse_options(argv)
    # The layers are so small that threads which spin while they wait take the processor from each other where it is
    # shared. Only read when torch is loaded, so torch comes after it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from refiners.demo.story import Story

    start = perf_counter()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        story = Story(options)
        path = story.tell()
    except DemoError as error:
        return complain("demo", str(error))
    except OSError as error:
        return complain("demo", f"argument --out: cannot write to {options.out}: {error.strerror}")
    print(f"\nDone in {perf_counter() - start:.0f} s. Everything is in {options.out}; begin with {path}")
    return 0 if all(story.checks) else 1
