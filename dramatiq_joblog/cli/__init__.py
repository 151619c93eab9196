"""The command line: ``dramatiq-joblog``, or ``python -m dramatiq_joblog``.

It uses only queries that a user's code could also make through ``JobLog``.
"""

from .main import main

__all__ = ["main"]
