"""What can go wrong for reasons that the user can mend."""


class DemoError(Exception):
    """A problem that one line explains; the command prints it and ends with code 2."""

    @classmethod
    def missing(cls, package: str) -> "DemoError":
        """Say which optional dependency is missing and how to install it."""
        return cls(f"{package} is not installed: the demo needs the extra 'demo', pip install 'refiners[demo]'")
