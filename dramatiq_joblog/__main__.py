"""``python -m dramatiq_joblog``, and what the command ``dramatiq-joblog`` runs."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as e:
    if e.name not in ("click", "rich"):
        raise
    sys.exit(
        f"dramatiq-joblog needs {e.name}, which is not installed: "
        "pip install 'dramatiq-joblog[cli]'"
    )

__all__ = ["main"]

if __name__ == "__main__":
    main()
