"""One request: its permissions, its queries with time limits, and its response."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from dramatiq.logging import get_logger
from markupsafe import Markup
from starlette.responses import RedirectResponse, Response

from dramatiq_joblog.database.timeouts import answered_within
from dramatiq_joblog.errors import DatabaseAwayError, JobNotFound, QueryTimeout, SearchError
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.reading.display import escaped_json
from dramatiq_joblog.reading.saved import terms_of
from dramatiq_joblog.schema.models import to_millis

from . import commands, hidden
from .access import ALL, CSRF_FIELD, METRICS
from .done import done_text
from .figures import Figures
from .links import Links
from .sending import is_known, tagged
from .verdict import verdict_of
from .zones import COOKIE, zone_of, zone_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

    from dramatiq_joblog.joblog import JobLog
    from dramatiq_joblog.statistics.profile import Profile
    from dramatiq_joblog.statistics.series import Stats

    from .access import Access
    from .state import Site

T = TypeVar("T")
F = TypeVar("F", bound="Stats | Profile | None")

#: Milliseconds within which a health check responds, and within which any request does.
HEALTH_WITHIN, ANSWER_WITHIN = 3_500, 8_000


class Visit:
    """One request and its response.

    Parameters:
      site: The dashboard.
      request: The request, with the permissions set by the gate.
    """

    def __init__(self, site: Site, request: Request) -> None:
        self.site = site
        self.request = request
        self.access: Access = request.scope["joblog.access"]
        #: What of a row the visitor may see.
        self.visible = hidden.Visible(everything=self.access.sees_arguments)
        self.link = Links(request, site.assets)
        self.query = request.query_params
        self.now = datetime.now(timezone.utc)
        #: The time zone for display.
        self.zone = zone_of(request.cookies.get(COOKIE) or site.time_zone)
        #: Whether JSON is requested, by the path or by the header.
        self.wants_json = self.link.path.endswith(".json") or self._prefers_json
        #: Messages at the top of the page: what is missing, what was done.
        self.banners: list[str] = []
        #: The parts of the page that timed out.
        self.missing: set[str] = set()
        #: Figures of every page.
        self.figures = Figures(site, self.visible, self.part)

    @property
    def local_now(self) -> datetime:
        """The current time in the visitor's zone, from which searches count."""
        return self.now.astimezone(self.zone)

    @property
    def joblog(self) -> JobLog[Any]:
        """The log."""
        return self.site.joblog

    @property
    def who(self) -> str:
        """The user's name, for the audit log."""
        client = self.request.client
        return self.access.who or (client.host if client else "unknown")

    @property
    def _prefers_json(self) -> bool:
        """Whether JSON is requested by the header."""
        kinds = [
            part.split(";")[0].strip() for part in self.request.headers.get("accept", "").split(",")
        ]
        return "application/json" in kinds and "text/html" not in kinds

    def read_suffix(self, name: str, *, is_name: bool) -> str:
        """Return a name at the end of the path without ``.json``, if that only requests JSON.

        Parameters:
          name: The end of the path.
          is_name: Whether something has this very name.
        """
        if is_name or not name.endswith(".json"):
            self.wants_json = self._prefers_json
            return name
        self.wants_json = True
        return name.removesuffix(".json")

    # Queries

    def run(self, answer: Callable[[Visit], Response]) -> Response:
        """Respond with *answer*, or with an error page; return the connection afterwards."""
        try:
            with answered_within(self.joblog.database, self.patience):
                return answer(self)
        except JobNotFound as e:
            return self.sorry(404, "No such job", f"The log has no job {e.jid!r}.")
        except SearchError as e:
            return self.sorry(400, "Not understood", str(e))
        except QueryTimeout as e:
            return self._away(str(e))
        except DatabaseAwayError as e:
            get_logger(__name__).warning("The page could not query the log's database: %s", e)
            return self.no_answer()
        except Exception:  # noqa: BLE001
            # Respond with an error page to any error.
            get_logger(__name__).exception("The page %s failed", self.link.path)
            return self.sorry(500, "Something broke", "See the server's log for the reason.")

    @property
    def patience(self) -> int:
        """Milliseconds that a database may take to reply before its connection is cut.

        Less for a probe, which needs its response soon; a page may have several slow parts.
        """
        return HEALTH_WITHIN if self.link.path in METRICS else ANSWER_WITHIN

    def no_answer(self) -> Response:
        """Respond that the database does not reply."""
        return self._away(
            "The log's database does not respond. Jobs continue; events are kept and written "
            "once it is back."
        )

    def late(self) -> Response:
        """Respond that the database takes too long."""
        return self._away(f"The log's database took longer than {self.site.timeout / 1000:g} s.")

    def busy(self) -> Response:
        """Respond that too many requests are waiting."""
        return self._away("Too many requests wait for the log's database. Try again in a moment.")

    def part(
        self, what: str | None, ask: Callable[[], T], default: T, *, timeout: int | None = None
    ) -> T:
        """Return what *ask* returns, or *default* if the database takes too long for it.

        The page then reports that *what* is missing, unless it is None.
        """
        timeout = timeout or self.site.timeout
        try:
            with self.joblog.reading(timeout=timeout):
                return ask()
        except QueryTimeout:
            if what is not None:
                self.missing.add(what)
                self.banners.append(
                    f"The database took longer than {timeout / 1000:g} s for {what}; "
                    "the rest is up to date."
                )
            return default

    def rows(self, what: str | None, ask: Callable[[], Iterable[Any]]) -> list[Any]:
        """Return the rows of a query, or none if the database takes too long for them.

        They are without what the visitor may not see.
        """
        none: list[Any] = []
        return [self.visible.row(row) for row in self.part(what, lambda: list(ask()), none)]

    def whole(self, figures: F) -> F:
        """Return statistics; if they are incomplete, report since when they are complete."""
        since = None if figures is None else figures.known_since
        if since is not None and "older totals" not in self.missing:
            self.missing.add("older totals")
            self.banners.append(
                f"Jobs that ended before {since.astimezone(self.zone):%d %b %H:%M} are not counted "
                "yet; charts and figures begin there. A worker counts them, some minutes at a time."
            )
        return figures

    # Responses

    def refusal(self) -> Response | None:
        """Return the response for a visitor without access, or None."""
        if self.access.may_read:
            return None
        if self.site.door is not None:
            if self.wants_json or self.request.method != "GET" or self.link.path in METRICS:
                return self._say(401, self.access.reason)
            return RedirectResponse(self.link("login", next=self.link.back), 303)
        if self.wants_json:
            return self._say(403, self.access.reason)
        return self.sorry(403, "No access", self.access.reason)

    def to(self, name: str, /, **values: Any) -> Response:
        """Redirect to another page."""
        return RedirectResponse(self.link(name, **values), 303)

    def json(self, data: dict[str, Any], status_code: int = 200) -> Response:
        """Respond with JSON, including what is missing in it."""
        if self.missing:
            data = data | {"missing": sorted(self.missing)}
        # It may be read in a terminal.
        text = escaped_json(json.dumps(data, ensure_ascii=False, allow_nan=False))
        headers = {"vary": "accept, cookie"}
        return Response(text, status_code, headers, media_type="application/json")

    def page(
        self,
        template: str,
        heading: str,
        facts: dict[str, Any],
        *,
        live: bool = False,
        section: str = "",
        status_code: int = 200,
    ) -> Response:
        """Respond with a page."""
        site = self.site
        live = live and not site.frozen
        name = template.removesuffix(".html")
        context: dict[str, Any] = {
            "action": None,
            "banners": self.banners,
            "command": commands.shown_by(self.link, self.query) if section else "",
            "csrf_field": Markup('<input type="hidden" name="{}" value="{}">').format(
                CSRF_FIELD, self.request.scope["joblog.csrf"]
            ),
            "heading": heading,
            "json_url": None,
            "level_text": "may do everything" if self.access.level == ALL else "may look",
            "link": self.link,
            "live": live,
            "may_act": self.access.may_act,
            "missing": self.missing,
            "may_leave": site.door is not None and self.access.may_read,
            "name": "",
            "now": self.now,
            "now_ms": to_millis(self.now),
            "page": name,
            "problem": None,
            "section": section,
            "site": site,
            "needs": None,
            "who": self.access.who,
            "zone": self.zone,
            "zone_text": zone_text(self.local_now),
        }
        if self.access.may_read:
            context["nav"] = self.figures.navigation(counted=bool(section))
        if section:
            if (done := done_text(self.query)) is not None:
                self.banners.append(done)
            if section != "confirm":
                context["needs"] = verdict_of(self.figures.all_problems(), self)
            context["json_url"] = self._json_url()
        html = site.templates.get_template(template).render(context | facts)
        headers = {"vary": "accept, cookie"}
        if live:
            # A live page sends it back, and gets an empty response if nothing has changed.
            html, headers["etag"] = tagged(html)
            headers["joblog-now"] = str(context["now_ms"])
            if is_known(self.request, headers["etag"]):
                return Response(status_code=304, headers=headers)
        return Response(html, status_code, media_type="text/html; charset=utf-8", headers=headers)

    def sorry(self, code: int, heading: str, text: str) -> Response:
        """Respond with an error and its reason, in the requested format."""
        if self.wants_json:
            return self._say(code, text)
        facts: dict[str, Any] = {"code": code, "text": text}
        if self.access.may_read:
            facts["action"] = ("Overview", self.link("overview"))
        return self.page("error.html", heading, facts, status_code=code)

    def _away(self, text: str) -> Response:
        response = self.sorry(503, "The log does not respond", text)
        response.headers["retry-after"] = "5"
        return response

    def _say(self, code: int, text: str) -> Response:
        return self.json({"error": text}, code)

    def _json_url(self) -> str:
        here = self.link.here()
        path, _, query = here.partition("?")
        path = self.link.root + "/overview" if self.link.path == "/" else path
        return f"{path}.json" + (f"?{query}" if query else "")

    def search(self, words: str) -> Any:
        """Return the jobs that a search finds, with times in the visitor's zone.

        Raises:
          SearchError: If the words cannot be parsed, or use values that the visitor may not see.
        """
        if not self.may_ask(words):
            raise SearchError(hidden.REFUSAL)
        return self.joblog.search(words, now=self.local_now, broker=self.site.broker)

    def may_ask(self, words: str) -> bool:
        """Return whether a search uses only values that the visitor may see.

        Raises:
          SearchError: If it cannot be parsed.
        """
        if self.access.sees_arguments:
            return True
        return not hidden.asks_for_arguments(
            terms_of(self.joblog.core.tables.search, words)
        ) or self._is_jid(words)

    def _is_jid(self, words: str) -> bool:
        jid = words.strip().strip('"')
        return bool(self.joblog.jobs.where(self.joblog.Job.jid == fold_jid(jid)).exists())
