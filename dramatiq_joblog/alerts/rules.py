"""Rules: jobs that a search finds, problems, and jobs that did not run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from peewee import fn

from dramatiq_joblog.broker.arguments import positional_names
from dramatiq_joblog.errors import ConfigurationError, SearchError
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.values import MAX_MILLIS
from dramatiq_joblog.reading import search
from dramatiq_joblog.schema.fields import instant_of
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import ACTIVE, FINAL, ProblemKind, State
from dramatiq_joblog.statistics.cells import DAY, HOUR, MINUTE, QUARTER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dramatiq_joblog.admin.problem import Problem
    from dramatiq_joblog.schema.query import JobQuery
    from dramatiq_joblog.schema.tables import Tables

#: The kinds of problems that are alerts by default; an expected job already has its own alert.
_PROBLEMS = tuple(kind.value for kind in ProblemKind if kind != ProblemKind.MISSED)
#: Counting stops here: a notice then says "or more".
MOST = 1_000
#: How many jobs a notice names.
NAMED = 5
#: The most characters of a rule's name.
MAX_NAME = 200


@dataclass(frozen=True)
class Sight:
    """What a rule found."""

    #: Its unique key: the name of the rule, with more if the rule has several alerts.
    key: str
    #: Its name, for people.
    name: str
    #: Whether somebody should be notified.
    is_open: bool
    #: The number of jobs, or of other things.
    count: int = 0
    #: What was found, in a sentence or two.
    summary: str = ""
    #: Since when, in milliseconds since 1970; None for now.
    since: int | None = None
    #: Some of the jobs.
    jids: tuple[str, ...] = ()
    #: The words of a search that finds them.
    search: str = ""
    #: The job type of which a job should have finished.
    expects: str | None = None
    #: What it concerns: a new entry makes a notice due at once.
    subjects: frozenset[str] = frozenset()
    #: Whether it is muted: there is no notice, not even of its end.
    is_muted: bool = False


class Asked(Protocol):
    """The parts of a log that rules query."""

    @property
    def tables(self) -> Tables[Any]:
        """The log's tables."""

    @property
    def problems(self) -> Callable[..., Sequence[Problem]]:
        """Returns what needs someone now, with *muted* what somebody muted too."""


class Rule(Protocol):
    """Defines what is checked, and who is notified."""

    @property
    def name(self) -> str:
        """The name, unique in the log."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its alerts, unique in the log."""

    @property
    def to(self) -> Any:
        """Who is notified instead of the log's ``notify``, in the same forms."""

    def check(self, job: Any) -> None:
        """Raise a ConfigurationError if it cannot be checked with this job model."""

    def look(self, asked: Asked, now: int, first_seen: int) -> list[Sight]:
        """Return what is found now.

        Parameters:
          asked: The log, on a connection whose queries have a time limit.
          now: The database's time, in milliseconds since 1970.
          first_seen: When the rule was first checked.
        """


@dataclass(frozen=True)
class Alert:
    """Notifies when a search finds more jobs than it should.

    Example:
      >>> Alert("dead imports", "state:dead type:import", within=3_600_000).more_than
      0

    Parameters:
      name: Names the rule, for people.
      search: The words of a search, such as ``state:dead type:import,reconciliation``.
      more_than: Notify only if there are more jobs than this.
      within: Jobs that have ended count if they ended within this many milliseconds; other jobs
        count by their current state.  An hour by default.
      to: Who is notified, in place of the log's ``notify``: a callable or URLs.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    name: str
    search: str
    more_than: int = 0
    within: int = HOUR
    to: Any = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_number(self.name, "more_than", self.more_than, least=0)
        check_number(self.name, "within", self.within, least=1_000)
        if not isinstance(self.search, str) or not self.search.strip():
            raise ConfigurationError(
                f"the alert {self.name!r} needs the words of a search, such as 'state:dead'"
            )
        try:
            terms = search.parse(self.search)
        except SearchError as e:
            raise ConfigurationError(f"the alert {self.name!r} has an invalid search: {e}") from e
        for saved in (term.value for term in terms if term.key == "saved"):
            raise ConfigurationError(
                f"the alert {self.name!r} names the saved search {saved!r}, which anyone may "
                "change or delete: write its words"
            )

    @staticmethod
    def problems(*kinds: str, name: str = "problems", to: Any = None) -> ProblemAlert:
        """Return a rule that notifies when :meth:`JobLog.problems` finds something.

        Parameters:
          kinds: The kinds of problems, such as ``"lost"``; by default all.
          name: Names the rule, for people.
          to: Who is notified, in place of the log's ``notify``.
        """
        return ProblemAlert(name, kinds, to)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its alerts; see :class:`Rule`."""
        return (self.name,)

    def check(self, job: Any) -> None:
        """Raise a ConfigurationError if the search is invalid in this log."""
        try:
            search.narrow(job.select(), search.parse(self.search))
        except SearchError as e:
            raise ConfigurationError(f"the alert {self.name!r} has an invalid search: {e}") from e

    def look(self, asked: Asked, now: int, first_seen: int) -> list[Sight]:
        """Return what is found now; see :class:`Rule`."""
        job: Any = asked.tables.job
        terms = search.parse(self.search)
        found = search.narrow(job.select(), terms, now=instant_of(now), names=positional_names())
        ended = found.where(
            job.state.in_(literal_states(FINAL)), job.finished_at >= now - self.within
        )
        lists = ended.order_by(job.finished_at.desc()), _active_of(found, job)
        count, jids = 0, []
        for jobs in lists:
            rows = list(jobs.limit(MOST - count + 1).select(job.jid).tuples())
            count += len(rows)
            jids += [jid for (jid,) in rows[:NAMED]]
            if count > MOST:
                break
        if count <= self.more_than:
            return [Sight(self.name, self.name, is_open=False, count=count)]
        many = f"{MOST:,} or more jobs" if count > MOST else _jobs(count)
        allowed = f" (more than {self.more_than:,})" if self.more_than else ""
        said = f"{many} within {span_of(self.within)}{allowed}: {self.search}."
        said += _why(asked, jids[:NAMED])
        return [
            Sight(
                self.name,
                self.name,
                is_open=True,
                count=count,
                summary=said,
                jids=tuple(jids[:NAMED]),
                search=self.search,
            )
        ]


@dataclass(frozen=True)
class ProblemAlert:
    """Notifies when :meth:`JobLog.problems` finds something; see :class:`Alert`."""

    name: str
    kinds: tuple[str, ...]
    to: Any = None

    def __post_init__(self) -> None:
        check_name(self.name)
        known = [kind.value for kind in ProblemKind]
        for kind in self.kinds:
            if kind not in known:
                raise ConfigurationError(
                    f"the alert {self.name!r} has the unknown kind of problem {kind!r}; use "
                    f"{', '.join(known)}"
                )
        kinds = dict.fromkeys(ProblemKind(kind).value for kind in self.kinds or _PROBLEMS)
        object.__setattr__(self, "kinds", tuple(kinds))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its alerts, one for each kind; see :class:`Rule`."""
        return tuple(map(self._key, self.kinds))

    def _key(self, kind: str) -> str:
        return f"{self.name}:{kind}"

    def check(self, job: Any) -> None:
        """Do nothing: its kinds were checked at construction."""

    def look(self, asked: Asked, now: int, first_seen: int) -> list[Sight]:
        """Return what is found for each kind; see :class:`Rule`."""
        by_kind: dict[str, list[Problem]] = {}
        for problem in asked.problems(muted=True):
            by_kind.setdefault(problem.kind.value, []).append(problem)
        return [self._sight(kind, by_kind.get(kind, [])) for kind in self.kinds]

    def _sight(self, kind: str, found: Sequence[Problem]) -> Sight:
        key = self._key(kind)
        name = kind.replace("_", " ") if self.name == "problems" else f"{self.name}: {kind}"
        problems = [problem for problem in found if problem.muted is None]
        if not problems:
            return Sight(key, name, is_open=False, is_muted=bool(found))
        said = [f"{_sentence(problem.text)} {_sentence(problem.cure)}" for problem in problems]
        more = len(problems) - NAMED
        return Sight(
            key,
            name,
            is_open=True,
            count=sum(problem.count for problem in problems),
            summary="\n".join(said[:NAMED]) + (f"\nAnd {more} more." if more > 0 else ""),
            since=min(int(problem.since.timestamp() * 1000) for problem in problems),
            search=problems[0].search if len(problems) == 1 else "",
            subjects=frozenset(problem.subject for problem in problems),
        )


@dataclass(frozen=True)
class Expect:
    """Notifies when no job of a type has finished for too long.

    It needs no schedule, and does not depend on what sends the jobs.

    Example:
      >>> Expect("nightly report", every=86_400_000, grace=3_600_000).name
      'expected: nightly report'

    Parameters:
      job_type: The type of the jobs.
      every: Milliseconds within which a job must finish.
      grace: Milliseconds by which it may be late; a tenth of *every* by default.
      to: Who is notified, in place of the log's ``notify``.
      name: Names the rule, for people.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    job_type: str
    every: int
    grace: int | None = None
    to: Any = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.job_type, str) or not self.job_type:
            raise ConfigurationError(f"Expect({self.job_type!r}) needs a job type, as a text")
        kind = str(getattr(self.job_type, "value", self.job_type))
        object.__setattr__(self, "job_type", kind)
        object.__setattr__(self, "name", self.name or f"expected: {kind}")
        check_name(self.name)
        check_number(self.name, "every", self.every, least=1_000)
        if self.grace is None:
            object.__setattr__(self, "grace", self.every // 10)
        check_number(self.name, "grace", self.grace, least=0)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its alerts; see :class:`Rule`."""
        return (self.name,)

    def check(self, job: Any) -> None:
        """Do nothing: its values were checked at construction."""

    def look(self, asked: Asked, now: int, first_seen: int) -> list[Sight]:
        """Return whether a job has finished in time; see :class:`Rule`."""
        within = self.every + (self.grace or 0)
        if now - within <= first_seen or self.has_finished(asked.tables, now - within, within):
            return [Sight(self.name, self.name, is_open=False, expects=self.job_type)]
        job: Any = asked.tables.job
        newest = job.select().where(job.job_type == self.job_type).order_by(job.created_at.desc())
        rows = list(newest.limit(NAMED))
        said = (
            f"No job of type {self.job_type!r} has finished for {span_of(within)}; one is "
            f"expected every {span_of(self.every)}."
        )
        said += f" The newest one is {rows[0].state}." if rows else " None was sent."
        said += _why(asked, [row.jid for row in rows])
        return [
            Sight(
                self.name,
                self.name,
                is_open=True,
                count=1,
                summary=said,
                since=now,
                jids=tuple(row.jid for row in rows),
                search=f'type:"{self.job_type}"',
                expects=self.job_type,
            )
        ]

    def has_finished(self, tables: Tables[Any], since: int, within: int) -> bool:
        """Return whether a job has finished since, by rows or by totals, which outlive the rows."""
        job: Any = tables.job
        rows = job.select(job.id).where(
            job.job_type == self.job_type,
            job.state.in_(literal_states([State.FINISHED])),
            job.finished_at >= since,
        )
        if rows.limit(1).exists():
            return True
        total: Any = tables.total
        spans = [span for span in (MINUTE, QUARTER, HOUR, DAY) if span <= max(MINUTE, within // 8)]
        counted = total.select(total.id).where(
            total.span.in_(spans),
            # A span that began earlier may be partly in this period.
            total.at > since - total.span,
            total.job_type == self.job_type,
            total.outcome == State.FINISHED.value,
            total.count > 0,
        )
        return bool(counted.limit(1).exists())


#: What ``alerts=`` may contain.
KINDS = (Alert, ProblemAlert, Expect)


def check_rules(rules: Iterable[Any], job: Any) -> tuple[Rule, ...]:
    """Return the rules of a log.

    Raises:
      ConfigurationError: If one is not a rule, is invalid, or has the name of another.
    """
    if not isinstance(rules, Iterable) or isinstance(rules, str):
        raise ConfigurationError(f"alerts= is {rules!r}: give a list of rules")
    checked: list[Rule] = []
    taken: set[str] = set()
    for rule in rules:
        if not isinstance(rule, KINDS):
            raise ConfigurationError(
                f"alerts= has {rule!r} in it; use Alert(...), Alert.problems() and Expect(...)"
            )
        known: Rule = rule
        known.check(job)
        # In the form of the table, in which two different names may be the same.
        keys = {*map(fold_jid, known.keys)}
        if taken & keys:
            raise ConfigurationError(
                f"two alerts have the name {known.name!r}, or names that mean the same: give each "
                "a name of its own"
            )
        taken |= keys
        checked.append(known)
    return tuple(checked)


def check_name(name: Any) -> None:
    """Raise a ConfigurationError if it is not a valid name of a rule."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
        raise ConfigurationError(
            f"an alert needs a name of 1 to {MAX_NAME} characters, and has {name!r}"
        )


def check_number(name: str, what: str, value: Any, *, least: int) -> None:
    """Raise a ConfigurationError if it is not a whole number, or out of bounds."""
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_MILLIS
    if not fits:
        raise ConfigurationError(
            f"the alert {name!r} has {what}={value!r}: a whole number, at least {least:,}, is "
            "needed (times are milliseconds)"
        )


def _active_of(found: JobQuery[Any], job: Any) -> Any:
    """Return those of *found* that have not ended, the newest first."""
    return found.where(job.state.in_(literal_states(ACTIVE))).order_by(job.created_at.desc())


def _why(asked: Asked, jids: Sequence[str]) -> str:
    """Return the errors of jobs as a sentence; empty if there are none."""
    job: Any = asked.tables.job
    if not jids:
        return ""
    rows = job.select(job.actor, job.error_type, job.error_message, fn.COUNT(job.id)).where(
        job.jid.in_(list(jids)), job.error_type.is_null(False)
    )
    found = rows.group_by(job.actor, job.error_type, job.error_message).limit(3).tuples()
    said = [
        f"{actor}: {kind}{': ' + message.strip()[:200] if message else ''}"
        for actor, kind, message, _ in found
    ]
    return (" " + "; ".join(said)) if said else ""


def _sentence(text: str) -> str:
    """Return a text as a separate sentence."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def span_of(milliseconds: int) -> str:
    """Return a period in words: ``1 hour``, ``36 hours``, ``90 seconds``."""
    for unit, name in ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute")):
        if milliseconds % unit == 0:
            number = milliseconds // unit
            return f"{number:,} {name}{'s' * (number != 1)}"
    return f"{milliseconds / 1000:,.0f} seconds"


def _jobs(number: int) -> str:
    return f"{number:,} job{'s' * (number != 1)}"
