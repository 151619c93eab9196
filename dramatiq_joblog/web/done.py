"""What the page says after an action, from the parameters of its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: By action, for no job, for one, and for several.
_DONE = {
    "requeue": ("Nothing was run again.", "1 job runs again.", "{} jobs run again."),
    "rerun": ("Nothing was run again.", "1 job runs again.", "{} jobs run again."),
    "now": ("Nothing was sent.", "1 job was sent.", "{} jobs were sent."),
    "dismiss": ("Nothing was dismissed.", "1 job is dismissed.", "{} jobs are dismissed."),
    "cancel": ("Nothing was cancelled.", "1 job is cancelled.", "{} jobs are cancelled."),
    "unlock": (
        "Nothing was unlocked: the key has another holder by now.",
        "The key is unlocked.",
        "{} keys are unlocked.",
    ),
    "mute": ("It is gone by now: nothing is muted.", "The problem is muted.", ""),
    "unmute": ("It was not muted.", "The problem is no longer muted.", ""),
}


def done_text(query: Mapping[str, str]) -> str | None:
    """Return what was done; None if nothing was."""
    texts = _DONE.get(query.get("done", ""))
    if texts is None:
        return None
    done, refused = (_whole(query.get(name, "")) for name in ("n", "not"))
    text = texts[min(done, 2)].format(done)
    if refused:
        text += f" {refused} could not be; Actions says why."
    return text


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0
