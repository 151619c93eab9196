"""The history of one job, with links to other jobs in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from dramatiq_joblog.reading.story import Other, story

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from .context import Visit


def history(
    visit: Visit,
    found: Any,
    failures: Sequence[Any],
    family: Sequence[Any],
    deeds: Iterable[Any],
) -> list[tuple[datetime, str, Markup]]:
    """Return the events of a job, oldest first: time, shape and text."""
    return [
        (event.at, event.shape, Markup("").join(_part(visit, part) for part in event.parts))
        for event in story(found, failures, family, deeds)
    ]


def _part(visit: Visit, part: str | Other) -> Markup:
    if isinstance(part, Other):
        href = visit.link("job", jid=part.jid)
        return Markup('<a class="link mono" href="{}">{}</a>').format(href, part.jid[:8])
    return escape(part)
