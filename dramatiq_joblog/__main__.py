"""``python -m dramatiq_joblog``, and the entry point of the command ``dramatiq-joblog``."""

import contextlib
import sys
from collections.abc import Iterator

__all__ = ["main"]


@contextlib.contextmanager
def _naming_what_is_missing() -> Iterator[None]:
    """End with the command that installs it where an extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name not in ("click", "rich"):
            raise
        sys.exit(
            f"dramatiq-joblog needs {e.name}, which is not installed: "
            "pip install 'dramatiq-joblog[cli]'"
        )


with _naming_what_is_missing():
    from .cli import main as _main


def main() -> None:
    """Run the command line, and end the process."""
    # Most of it is imported as it is called.
    with _naming_what_is_missing():
        _main()


if __name__ == "__main__":
    main()
