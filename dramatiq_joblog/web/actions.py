"""Actions of users: confirmed with their effects, and recorded."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dramatiq.logging import get_logger
from starlette.responses import RedirectResponse

from dramatiq_joblog.broker.arguments import signature_of
from dramatiq_joblog.errors import (
    CancelError,
    JobLogError,
    JobNotFound,
    LockNotAcquired,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.payload.secret_texts import REDACTED
from dramatiq_joblog.reading.display import exact, number
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import CANCELLABLE, State

from . import commands, tickets
from .formats import plain_duration, short
from .named import arguments_of
from .presenters import JobRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from starlette.datastructures import FormData
    from starlette.responses import Response

    from .context import Visit

#: The maximum number of jobs in one action.
MOST = 1000
#: Seconds to spend on a search for matching jobs.
LOOK_FOR = 10.0
#: The number of refusals that are recorded with their reasons.
_TOLD = 5
#: Why some jobs cannot run again.
_NOT_KEPT = "their arguments are not stored as they were sent"
#: The actions, and the states of the jobs that each applies to.
_STATES = {
    "requeue": (State.DEAD, State.FINISHED, State.SKIPPED),
    "dismiss": (State.DEAD,),
    "cancel": CANCELLABLE,
    "rerun": (State.LOST,),
    "now": (State.DELAYED, State.RETRYING),
}
#: The texts of each question, for one job and for many, and why other jobs are left out.
_ASKED = {
    "requeue": ("Run {} again", "they have not ended; what does not run can be cancelled first"),
    "dismiss": ("Dismiss {}", "they are not dead"),
    "cancel": ("Cancel {}", "they run, or have ended"),
    "rerun": ("Cancel and run {} again", "they are not lost"),
    "now": ("Run {} now", "they wait for no time of their own"),
}
#: The button's text for one job.
_BUTTONS = {
    "requeue": "Run again",
    "dismiss": "Dismiss",
    "cancel": "Cancel it",
    "rerun": "Cancel and run again",
    "now": "Run now",
}
#: The message if the subject of an action is gone.
_NO_HOLDER = ("Nothing holds it", "The key is free, or has another holder by now.")
_GONE = dict.fromkeys(("mute", "unmute"), ("It is gone", "This problem no longer exists."))
#: The durations for which a problem can be muted, in milliseconds.
_SPANS = {
    "1h": ("1 hour", 3_600_000),
    "8h": ("8 hours", 28_800_000),
    "1d": ("1 day", 86_400_000),
    "3d": ("3 days", 259_200_000),
    "7d": ("7 days", 604_800_000),
    "30d": ("30 days", 2_592_000_000),
}
#: The actions that cancel jobs and send them again.
_ANEW = frozenset({"rerun", "now"})


@dataclass
class Question:
    """The confirmation of an action."""

    what: str
    title: str
    button: str
    note: str
    back: str
    fields: list[tuple[str, Any]]
    effects: list[tuple[str, str]] = field(default_factory=list)
    keep: str = "Keep as it is"
    key: str = ""
    look: str = "go"
    #: The jids of the jobs.
    jids: list[str] = field(default_factory=list)
    #: Whether one of them may be run first, as a trial.
    one_first: bool = False
    #: The arguments to change: name, value as JSON, and whether it is the actor's default.
    arguments: list[tuple[str, str, bool]] = field(default_factory=list)
    #: Whether there is nothing to do.
    none: bool = False
    #: Whether a reason is asked for: empty for no, ``optional`` or ``required``.
    reason: str = ""
    #: The equivalent command for the terminal, if there is one.
    command: str = ""
    #: The durations to choose from, as pairs of a word and a text.
    spans: Sequence[tuple[str, str]] = ()
    warning: str = ""


def confirm(visit: Visit) -> Response:
    """Respond with the confirmation page of an action."""
    what = visit.request.path_params["what"]
    if not visit.access.may_act:
        return visit.sorry(403, "Not allowed", "You have read-only access.")
    if what == "unlock":
        question = _ask_unlock(visit)
    elif what == "change":
        question = _ask_change(visit)
    elif what in {"mute", "unmute"}:
        question = _ask_mute(visit, what)
    elif what in _STATES:
        question = _ask_jobs(visit, what)
    else:
        return visit.sorry(404, "No such action", f"There is no action {what!r}.")
    if question is None:
        return visit.sorry(409, *_GONE.get(what, _NO_HOLDER))
    return visit.page("confirm.html", question.title, {"question": question}, section="confirm")


def do(visit: Visit, form: FormData) -> Response:
    """Execute the action of a form, and redirect to the page that it came from."""
    what = visit.request.path_params["what"]
    back = visit.link.local(str(form.get("back", "")))
    others: dict[str, Callable[[], Response]] = {
        tickets.WHAT: lambda: tickets.make(visit, form),
        "change": lambda: _change(visit, form),
        "forget": lambda: _forget_search(visit, form),
        "mute": lambda: _mute(visit, form, back),
        "unmute": lambda: _unmute(visit, form, back),
        "save": lambda: _save_search(visit, form),
        "unlock": lambda: _unlock(visit, form, back),
    }
    if what in others:
        return others[what]()
    if what not in _STATES:
        return visit.sorry(404, "No such action", f"There is no action {what!r}.")
    jids, words = _texts(form, "jid"), _texts(form, "q")
    if not jids and not words:
        return visit.sorry(400, "Nothing is selected", "Select a job first.")
    but = set(_texts(form, "but"))
    jids = jids[:MOST] or [job.jid for job in _matching(visit, what, words).jobs]
    jids = [jid for jid in jids if jid not in but]
    if form.get("first") and len(jids) > 1:
        return _one_first(visit, what, jids, words, back)
    return _do_to(visit, what, jids, _reason(form), back)


def _save_search(visit: Visit, form: FormData) -> Response:
    """Save the words of a search under a name."""
    words = str(form.get("q", ""))
    visit.joblog.save_search(str(form.get("name", "")), words, who=visit.who)
    return visit.to("jobs", q=words)


def _forget_search(visit: Visit, form: FormData) -> Response:
    """Delete a saved search, and redirect to its results."""
    visit.joblog.delete_search(str(form.get("name", "")), who=visit.who)
    return visit.to("jobs", q=str(form.get("q", "")))


def _do_to(visit: Visit, what: str, jids: list[str], reason: str, back: str) -> Response:
    """Execute an action on jobs."""
    if what == "dismiss":
        dismissed = visit.joblog.dismiss(*jids, who=visit.who)
        return _say(visit, what, back, len(dismissed), len(jids) - len(dismissed))
    if what == "cancel":
        done, refused = _cancel(visit, jids, reason)
    elif what in _ANEW:
        done, refused = _rerun(visit, jids, reason)
    else:
        done, refused = _requeue(visit, jids)
    if len(jids) == 1 and refused:
        heading = "Not cancelled" if what == "cancel" else "Not run again"
        return visit.sorry(409, heading, next(iter(refused.values())))
    if len(jids) == 1 and done and what != "cancel":
        back = visit.link("job", jid=done[0])
    return _say(visit, what, back, len(done), len(refused))


def _cancel(visit: Visit, jids: Sequence[str], reason: str) -> tuple[list[str], dict[str, str]]:
    """Cancel jobs; return their jids, and the reasons of refusals."""
    if len(jids) == 1:
        try:
            return [visit.joblog.cancel(jids[0], who=visit.who, reason=reason).jid], {}
        except (CancelError, JobNotFound) as e:
            return [], {jids[0]: str(e)}
    done = visit.joblog.cancel_named(jids, who=visit.who, reason=reason)
    _write_down(visit, "cancel", done.cancelled, done.refused)
    return done.cancelled, done.refused


def _requeue(visit: Visit, jids: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Run jobs again; return the new jids, and the reasons of refusals."""
    log = visit.joblog
    try:
        done = log.requeue_named(jids, who=visit.who, broker=visit.site.broker)
        messages, refused = done.sent, done.refused
    except RequeueInterruptedError as e:
        get_logger(__name__).warning("Jobs could not all be sent again: %s", e)
        messages, refused = e.sent, e.refused | {e.jid: f"the broker refused it: {e.why}"}
    except JobLogError as e:
        messages, refused = [], dict.fromkeys(jids, getattr(e, "reason", str(e)))
    sent = [message.message_id for message in messages]
    if len(jids) == 1:
        # For a single job, the reason is the whole message.
        refused = {jid: str(RequeueError(jid, reason)) for jid, reason in refused.items()}
    _write_down(visit, "requeue", sent, refused)
    return sent, refused


def _rerun(visit: Visit, jids: Sequence[str], reason: str) -> tuple[list[str], dict[str, str]]:
    """Cancel jobs and send them again; return the new jids, and the reasons of refusals.

    A job that cannot be sent again stays cancelled, and can be run again like any dead job.
    """
    cancelled, refused = _cancel(visit, jids, reason or "to run it again")
    if not cancelled:
        return [], refused
    done, others = _requeue(visit, cancelled)
    return done, refused | others


def _one_first(visit: Visit, what: str, jids: list[str], words: list[str], back: str) -> Response:
    """Run one of several jobs again, and redirect to it with an offer to run the others."""
    first, rest = jids[0], jids[1:]
    done, refused = _rerun(visit, [first], "") if what in _ANEW else _requeue(visit, [first])
    if refused or not done:
        return visit.sorry(409, "Not run again", next(iter(refused.values()), "It is gone."))
    visit.site.forget()
    fields = [("back", back)]
    if words:
        fields += [("q", text) for text in words] + [("but", first)]
    else:
        fields += [("jid", jid) for jid in rest[:MOST_IN_ADDRESS]]
    then = f"{visit.link('confirm', what=what)}?{urlencode(fields)}"
    href = visit.link("job", jid=done[0], then=then, rest=len(rest))
    return RedirectResponse(href, 303)


#: The maximum number of jids in a URL.
MOST_IN_ADDRESS = 100


def _ask_change(visit: Visit) -> Question | None:
    """Return the form for running a job again with changed arguments."""
    jid = visit.query.get("jid", "")
    job = visit.joblog.get(jid)
    shown = arguments_of(job, signature_of(job.actor, visit.site.broker))
    fields = [
        (name, "" if value == REDACTED else _as_json(value), is_default)
        for name, value, is_default in shown["pairs"]
    ]
    able = job.state in _STATES["requeue"]
    known = signature_of(job.actor, visit.site.broker) is not None
    effects = [("retrying", "It is sent again, as a new job, with these arguments.")]
    if not known:
        effects.append(("waiting", "This process does not know its actor, and checks nothing."))
    if job.withheld is not None and job.sealed is None:
        able, effects = False, [("skipped", f"It cannot run again: {_NOT_KEPT}.")]
    elif not able:
        effects = [("skipped", f"It cannot run again: {_ASKED['requeue'][1]}.")]
    return Question(
        what="change",
        title=f"Run {job.job_type or job.actor} again with other arguments?",
        button="Run again",
        note='values are JSON: 7, "text", true, null',
        back=visit.link("job", jid=jid),
        fields=[("jid", jid)],
        effects=effects,
        arguments=fields if able else [],
        none=not able,
    )


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        # A default value without a JSON form.
        return ""


def _from_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
      ValueError: If it is not JSON, which has neither NaN nor an infinity, or is nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise ValueError(digits)
        return number

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError as e:
        raise ValueError(text[:40]) from e


def _change(visit: Visit, form: FormData) -> Response:
    """Run a job again with the changed arguments of a form."""
    jid = str(form.get("jid", ""))
    job = visit.joblog.get(jid)
    changed: dict[str, Any] = {}
    known = arguments_of(job, signature_of(job.actor, visit.site.broker))["pairs"]
    for name, value, is_default in known:
        given = form.get(f"arg-{name}")
        if not isinstance(given, str) or given == _as_json(value):
            continue
        if not given.strip() and is_default:
            continue
        if not given.strip():
            text = f'{name} is empty: write null, or "" for an empty text.'
            return visit.sorry(400, "Not run again", text)
        try:
            new = _from_json(given)
        except ValueError:
            text = f'{name} is not JSON: write a text in quotes, as "{given[:40]}".'
            return visit.sorry(400, "Not run again", text)
        if new != value or type(new) is not type(value):
            changed[name] = new
    try:
        message = visit.joblog.requeue(
            jid, arguments=changed, who=visit.who, broker=visit.site.broker
        )
    except JobLogError as e:
        return visit.sorry(409, "Not run again", str(e))
    visit.site.forget()
    return RedirectResponse(visit.link("job", jid=message.message_id, done="requeue", n=1), 303)


def _write_down(visit: Visit, what: str, done: list[str], refused: dict[str, str]) -> None:
    """Record the jobs that were refused, unless all were."""
    if refused and (done or len(refused) > 1):
        reasons = "; ".join(f"{short(jid)}: {text}" for jid, text in list(refused.items())[:_TOLD])
        more = f"; and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
        visit.joblog.record(what, who=visit.who, detail=f"{len(refused)} refused: {reasons}{more}")


def _say(visit: Visit, what: str, back: str, done: int, refused: int) -> Response:
    visit.site.forget()
    if visit.wants_json:
        return visit.json({"done": done, "refused": refused})
    mark = "&" if "?" in back else "?"
    return RedirectResponse(f"{back}{mark}done={what}&n={done}&not={refused}", 303)


def _ask_jobs(visit: Visit, what: str) -> Question:
    given = visit.query
    jids, words, but = given.getlist("jid"), given.getlist("q"), given.getlist("but")
    fields: list[tuple[str, Any]] = [("jid", jid) for jid in jids[:MOST]]
    looked_back_to = None
    if jids:
        found = _by_jid(visit, jids[:MOST])
    else:
        fields = [("q", text) for text in words] + [("but", jid) for jid in but]
        matching = _matching(visit, what, words)
        found, looked_back_to = matching.jobs, matching.looked_back_to
    asked, why = _ASKED[what]
    fit = [job for job in found if job.state in _STATES[what] and job.jid not in but]
    again = what == "requeue" or what in _ANEW
    able = [job for job in fit if not again or job.withheld is None or job.sealed is not None]
    gone = len(fit) - len(able)
    capped = len(jids) > MOST or (not jids and len(found) >= MOST)
    some = f"{number(len(able))} job{'s' * (len(able) != 1)}"
    effects = _effects(what, able, gone)
    if capped:
        effects.append(("waiting", f"There are more: at most {number(MOST)} are taken at a time."))
    elif looked_back_to is not None:
        text = f"Older than {exact(looked_back_to)} was not searched, and is not taken."
        effects.append(("waiting", f"{text} A narrower search, as of one job type, reaches it."))
    left = sum(job.state not in _STATES[what] for job in found)
    if left:
        effects.append(("skipped", f"{number(left)} are left alone: {why}."))
    name = able[0].job_type or able[0].actor if len(able) == 1 else some
    return Question(
        what=what,
        title=f"{asked.format(name)}?" if able else "Nothing to do",
        button=_BUTTONS[what] if len(able) < 2 else asked.format(number(len(able))),
        note="recorded with your name",
        back=visit.link.local(given.get("back", "") or _from(visit, jids)),
        fields=fields,
        effects=effects if able else _nothing(looked_back_to, _NOT_KEPT if gone else why),
        none=not able,
        jids=[job.jid for job in able],
        one_first=again and len(able) > 1,
        command=commands.done_by(what, jids=[] if words else jids, words=words) if able else "",
        reason="optional" if able and (what == "cancel" or what in _ANEW) else "",
    )


def _nothing(looked_back_to: datetime | None, why: str) -> list[tuple[str, str]]:
    """Return the facts for an action without any jobs."""
    if looked_back_to is None:
        return [("skipped", f"None of them can be: {why}.")]
    text = f"None was found as far back as {exact(looked_back_to)}; older was not searched."
    return [("waiting", f"{text} A narrower search, as of one job type, reaches it.")]


def _effects(what: str, able: list[Any], gone: int) -> list[tuple[str, str]]:
    """Return the effects of an action; *gone* jobs have lost their arguments."""
    if what == "dismiss":
        return [("skipped", "They no longer appear in lists of dead jobs; their rows are kept.")]
    if what == "cancel":
        each = "It" if len(able) == 1 else "Each"
        effects = [
            ("skipped", f"{each} is dead then, what it holds is free, and it can be run again."),
            ("waiting", "If its message still arrives, it does not run."),
        ]
        if any(job.state == State.LOST for job in able):
            effects.append(("lost", "Running code that the log does not know of is not stopped."))
        return effects
    effects = [("retrying", "Each is sent again with the same arguments, as a new job.")]
    if what == "rerun":
        effects.insert(0, ("skipped", "Each is cancelled first: what it holds is free."))
        effects.append(("lost", "Running code that the log does not know of is not stopped."))
    if what == "now":
        effects = [
            ("retrying", "Each is sent again at once with the same arguments, as a new job."),
            ("skipped", "The waiting job is cancelled: if its message arrives, it does not run."),
        ]
    others = sum(job.state not in {State.DEAD, State.LOST} for job in able)
    if others and what not in _ANEW:
        effects.append(("waiting", f"{number(others)} of them did not die: they run twice."))
    if gone:
        effects.append(("dead", f"{number(gone)} more cannot be: {_NOT_KEPT}."))
    twice = sum(job.replayed_by is not None for job in able)
    if twice:
        effects.append(("waiting", f"{number(twice)} of them were run again before."))
    return effects


def _from(visit: Visit, jids: list[str]) -> str:
    return visit.link("job", jid=jids[0]) if len(jids) == 1 else visit.link("jobs")


def _by_jid(visit: Visit, jids: list[str]) -> list[Any]:
    job = visit.joblog.Job
    return list(visit.joblog.jobs.where(job.jid.in_(jids)))


@dataclass
class _Matching:
    """The jobs that match searches."""

    #: The newest of them, at most :data:`MOST`.
    jobs: list[Any]
    #: How far back the search got, if there was no time for all.
    looked_back_to: datetime | None = None


def _matching(visit: Visit, what: str, words: Iterable[str]) -> _Matching:
    """Return the jobs that match any search and that the action applies to, newest first."""
    until = time.monotonic() + LOOK_FOR
    found: dict[str, Any] = {}
    bound: datetime | None = None
    for text in words:
        query = visit.search(text).in_state(*_STATES[what])
        page = query.page(limit=MOST)
        found.update((job.jid, job) for job in page.jobs)
        # Without an index, a page has only the matches among a bounded number of jobs.
        while page.looked_back_to is not None and len(found) < MOST:
            if time.monotonic() > until:
                bound = max(filter(None, (bound, page.looked_back_to)))
                break
            page = query.page(limit=MOST, before=page.older)
            found.update((job.jid, job) for job in page.jobs)
    return _Matching(list(found.values())[:MOST], bound)


def _ask_unlock(visit: Visit) -> Question | None:
    log, given = visit.joblog, visit.query
    key, slot, fence = given.get("key", ""), _int(given.get("slot")), _int(given.get("fence"))
    lock = log.locks.where(log.Lock.key == key, log.Lock.slot == slot).first()
    if lock is None or lock.fence != fence or lock.expires_at is None:
        return None
    job = log.jobs.where(log.Job.jid == lock.owner).first()
    waiter = log.waiters(key).first()
    now = log.now()
    renewed = to_millis(now) - (to_millis(lock.expires_at) - lock.ttl)
    who = short(job.jid) if job is not None else lock.owner
    stopped = None if job is None or job.state == State.STARTED else job
    warning, effects = "", []
    if stopped is None:
        place = lock.owner if job is None else JobRow(job, now).worker or who
        warning = f"Its holder is alive: {place} renewed the lease {plain_duration(renewed)} ago."
        effects.append(
            ("started", f"{who} continues to run, and sees lease_lost at its next check.")
        )
    else:
        state = str(stopped.state)
        look = state if state in {"retrying", "lost", "waiting"} else "lost"
        effects.append((look, f"{who} is {state}; its next run takes the key anew, or waits."))
    if waiter is not None:
        effects.append(("waiting", f"{short(waiter.jid)} comes in next, with fence {fence + 1}."))
    if stopped is None:
        effects.append(("dead", "Two may write at once unless the store checks the fence."))
    return Question(
        what="unlock",
        title="Unlock",
        key=key,
        button="Unlock",
        look="harm-go",
        note=f"fence {fence} must still hold, or nothing happens",
        back=visit.link("locks"),
        fields=[("key", key), ("slot", slot), ("fence", fence)],
        effects=effects,
        keep="Keep",
        command=commands.unlocks(key, fence),
        reason="required",
        warning=warning,
    )


def _unlock(visit: Visit, form: FormData, back: str) -> Response:
    reason = _reason(form)
    if not reason:
        return visit.sorry(400, "A reason is needed", "Enter a reason; it is recorded.")
    try:
        visit.joblog.unlock(
            str(form.get("key", "")),
            slot=_int(form.get("slot")),
            fence=_int(form.get("fence")),
            reason=reason,
            who=visit.who,
        )
    except LockNotAcquired:
        return _say(visit, "unlock", back, 0, 0)
    return _say(visit, "unlock", back, 1, 0)


def _problem(visit: Visit, kind: Any, subject: Any) -> Any:
    """Return a current problem; None if it no longer exists."""
    found = visit.joblog.problems(timeout=visit.site.timeout, muted=True)
    return next((p for p in found if (p.kind.value, p.subject) == (kind, subject)), None)


def _muted(visit: Visit, kind: Any, subject: Any) -> Any:
    """Return the mute of a problem, which may itself be gone; None if it is not muted."""
    which = kind, fold_jid(str(subject or ""))
    return next((m for m in visit.joblog.mutes if (m.kind, m.subject) == which), None)


def _ask_mute(visit: Visit, what: str) -> Question | None:
    given, mute = visit.query, what == "mute"
    find = _problem if mute else _muted
    problem = find(visit, given.get("kind", ""), given.get("subject", ""))
    if problem is None:
        return None
    effects = [
        ("skipped", "It no longer counts as a problem, and alerts leave it out."),
        ("retrying", "It returns when the time is over, or once its count has more than doubled."),
    ]
    return Question(
        what=what,
        title=f"{what.capitalize()} \u201c{problem.title}\u201d?",
        button=what.capitalize(),
        note="everyone still sees it, in grey" if mute else "recorded with your name",
        back=visit.link.local(given.get("back", "")),
        fields=[("kind", str(problem.kind)), ("subject", problem.subject)],
        effects=effects if mute else [("dead", "It counts as a problem again.")],
        reason="required" if mute else "",
        command=commands.mutes(str(problem.kind), problem.subject, off=not mute),
        spans=[(name, text) for name, (text, _) in _SPANS.items()] if mute else (),
    )


def _mute(visit: Visit, form: FormData, back: str) -> Response:
    reason, span = _reason(form), _SPANS.get(str(form.get("span", "")))
    if not reason:
        return visit.sorry(400, "A reason is needed", "Enter a reason; it is recorded.")
    if span is None:
        return visit.sorry(400, "Not muted", "Say for how long: a muted problem must come back.")
    problem = _problem(visit, form.get("kind"), form.get("subject"))
    if problem is None:
        return _say(visit, "mute", back, 0, 0)
    until = to_millis(visit.joblog.now()) + span[1]
    visit.joblog.mute(problem, until=until, reason=reason, who=visit.who)
    return _say(visit, "mute", back, 1, 0)


def _unmute(visit: Visit, form: FormData, back: str) -> Response:
    muted = _muted(visit, form.get("kind"), form.get("subject"))
    done = muted is not None and visit.joblog.unmute(muted, who=visit.who)
    return _say(visit, "unmute", back, int(done), 0)


def _reason(form: FormData) -> str:
    return str(form.get("reason", "")).strip()[:500]


def _texts(form: FormData, name: str) -> list[str]:
    return [value for value in form.getlist(name) if isinstance(value, str) and value]


def _int(value: Any) -> int:
    text = str(value or "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
