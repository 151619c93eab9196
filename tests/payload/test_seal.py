"""Encrypted arguments."""

from __future__ import annotations

import sys

import pytest
from cryptography.fernet import Fernet

from dramatiq_joblog import ConfigurationError, JobLog
from dramatiq_joblog.payload.encryption import Seal


def test_what_is_closed_is_opened_by_its_key_alone():
    """Any of the keys decrypts, the first one encrypts, and no other key decrypts."""
    old, new = Fernet.generate_key(), Fernet.generate_key().decode()
    text = Seal(old).close(b"a secret")

    assert "secret" not in text
    assert b"a secret" == Seal([new, old]).open(text)
    assert Seal(new).open(text) is None
    assert b"x" == Seal(new).open(Seal([new, old]).close(b"x"))


@pytest.mark.parametrize("keys", ["secret password", b"", [], ["a" * 44, 7]])
def test_what_is_no_key_is_refused(sqlite_url, keys):
    """The refusal says how to generate a key, and does not show the given value."""
    with pytest.raises(ConfigurationError, match=r"Fernet.generate_key") as refused:
        JobLog(sqlite_url, seal_key=keys)

    assert "secret password" not in str(refused.value)


def test_without_cryptography(sqlite_url, monkeypatch):
    """A missing extra is named with the install command."""
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'dramatiq-joblog\[crypto\]'"):
        JobLog(sqlite_url, seal_key=Fernet.generate_key())
