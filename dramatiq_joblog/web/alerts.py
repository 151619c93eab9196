"""What people are notified of: each alert as it stands, and what runs regularly and is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .formats import rough

if TYPE_CHECKING:
    from starlette.responses import Response

    from .context import Visit


@dataclass(frozen=True)
class AlertRow:
    """One alert as the page shows it.

    Parameters:
      state: What is known of it.
      href: The jobs that it is about, if it says which.
    """

    state: Any
    href: str | None

    @property
    def look(self) -> str:
        """The state of jobs whose shape and colour it has."""
        return "dead" if self.state.is_open else "finished"

    @property
    def word(self) -> str:
        """Whether it is open."""
        return "Open" if self.state.is_open else "Well"

    @property
    def trouble(self) -> str:
        """Why the notice that is to be sent was not, or nothing."""
        if not self.state.error:
            return ""
        return f"{self.state.pending or 'the notice'} was not sent: {self.state.error}"


def alerts(visit: Visit) -> Response:
    """Answer with each alert, those that are open first, and what could be expected as well."""
    log = visit.joblog
    found = visit.rows("the alerts", lambda: log.alerts)
    regular = visit.site.keep(
        "regular", lambda: visit.rows("what is regular", log.regular), times=30
    )
    expected = {state.expects for state in found}
    offered = [each for each in regular if each.job_type not in expected]
    if visit.wants_json:
        return visit.json(
            {
                "alerts": [visit.as_dict(state) for state in found],
                "offered": [each.as_dict() for each in offered],
            }
        )
    rows = [AlertRow(s, visit.link("jobs", q=s.search) if s.search else None) for s in found]
    count = sum(state.is_open for state in found)
    facts = {
        "rows": rows,
        "offered": [(each, rough(each.every)) for each in offered],
        "sub": f"{count} of {len(rows)} open" if rows else "",
    }
    return visit.page("alerts.html", "Alerts", facts, live=True, section="alerts")
