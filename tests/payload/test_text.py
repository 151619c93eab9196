"""Text that every database can hold."""

from __future__ import annotations

import json

import tiers
from hypothesis import given, settings
from hypothesis import strategies as st

from dramatiq_joblog.payload.redaction import Redactor
from dramatiq_joblog.payload.sanitize import (
    MAX_DOCUMENT,
    MAX_JID,
    clean,
    clean_optional,
    document,
    fold_jid,
)

PLAIN = Redactor(redact=False)
any_text = st.text(st.characters())


@settings(max_examples=tiers.examples(100), deadline=None)
@given(any_text, st.integers(100, 1000))
def test_clean_text_can_be_stored(text, limit):
    """Cleaned text encodes, has no NUL, and is hardly longer than its limit."""
    cleaned = clean(text, limit)
    assert "\x00" not in cleaned
    assert len(cleaned.encode()) >= 0
    assert len(cleaned) <= limit + 50
    if len(text) <= limit:
        assert len(text) == len(cleaned)


def test_the_middle_is_left_out():
    """Of a long text, the beginning and end are kept, and the omitted characters are counted."""
    cleaned = clean("a" * 500 + "z" * 500, 100)
    assert cleaned.startswith("a" * 25 + " [... 900 characters left out ...] ")
    assert cleaned.endswith("z" * 75)


@settings(max_examples=tiers.examples(100), deadline=None)
@given(any_text)
def test_a_folded_jid_is_folded_again_to_itself(jid):
    """A jid fits its column, and a folded jid is found by both forms."""
    folded = fold_jid(jid)
    assert len(folded) <= MAX_JID
    assert folded == fold_jid(folded)


def test_long_jids_stay_apart():
    """Two long jids that differ only at their ends stay distinct."""
    assert fold_jid("j" * 300 + "a") != fold_jid("j" * 300 + "b")
    assert "short" == fold_jid("short")


@settings(max_examples=tiers.examples(100), deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | any_text, st.lists))
def test_a_document_is_json(value):
    """Values with a JSON form are returned unchanged."""
    text, note, redacted = document(value, PLAIN)
    assert not redacted
    assert len(text) <= MAX_DOCUMENT
    if note is None:
        assert value == json.loads(text)


def test_a_document_that_is_too_long():
    """A value that is too long is left out, with a note of its length."""
    text, note, _ = document(["x" * 100_000], PLAIN)
    assert {"left_out": "100004 characters"} == json.loads(text)
    assert "100004 characters" in note


def test_a_document_that_is_no_json():
    """Values without a JSON form are stored as ``repr``; cycles and hostile objects do no harm."""

    class Rude:
        def __repr__(self):
            raise RuntimeError

    loop = []
    loop.append(loop)
    assert ["{7}"] == json.loads(document([{7}], PLAIN).text)
    assert "[[...]]" == json.loads(document(loop, PLAIN).text)
    assert ["<Rude whose repr raised RuntimeError>"] == json.loads(document([Rude()], PLAIN).text)


def test_clean_optional():
    """None stays None; a long name is cut."""
    assert clean_optional(None) is None
    assert "a" * 255 == clean_optional("a" * 300)
