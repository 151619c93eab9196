"""The command line: ``dramatiq-joblog``, or ``python -m dramatiq_joblog``.

It asks nothing of the database that a user's code could not ask through ``JobLog``.
"""

from .main import main

__all__ = ["main"]
