"""The confirmation of an action: what it is about to do, and its effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.broker.arguments import signature_of
from dramatiq_joblog.payload.secret_texts import REDACTED
from dramatiq_joblog.reading.display import exact, number
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import State

from . import commands
from .formats import plain_duration, short
from .named import arguments_of
from .presenters import JobRow
from .subjects import (
    ANEW,
    MOST,
    SPANS,
    STATES,
    as_json,
    int_of,
    jobs_matching,
    mute_of,
    problem_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from starlette.responses import Response

    from .context import Visit

#: Why some jobs cannot run again.
_NOT_KEPT = "their arguments are not stored as they were sent"
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
    elif what in STATES:
        question = _ask_jobs(visit, what)
    else:
        return visit.sorry(404, "No such action", f"There is no action {what!r}.")
    if question is None:
        return visit.sorry(409, *_GONE.get(what, _NO_HOLDER))
    return visit.page("confirm.html", question.title, {"question": question}, section="confirm")


def _ask_change(visit: Visit) -> Question | None:
    """Return the form for running a job again with changed arguments."""
    jid = visit.query.get("jid", "")
    job = visit.joblog.get(jid)
    shown = arguments_of(job, signature_of(job.actor, visit.site.broker))
    fields = [
        (name, "" if value == REDACTED else as_json(value), is_default)
        for name, value, is_default in shown["pairs"]
    ]
    able = job.state in STATES["requeue"]
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


def _ask_jobs(visit: Visit, what: str) -> Question:
    given = visit.query
    jids, words, but = given.getlist("jid"), given.getlist("q"), given.getlist("but")
    fields: list[tuple[str, Any]] = [("jid", jid) for jid in jids[:MOST]]
    looked_back_to = None
    if jids:
        found = _by_jid(visit, jids[:MOST])
    else:
        fields = [("q", text) for text in words] + [("but", jid) for jid in but]
        matching = jobs_matching(visit, what, words)
        found, looked_back_to = matching.jobs, matching.looked_back_to
    asked, why = _ASKED[what]
    fit = [job for job in found if job.state in STATES[what] and job.jid not in but]
    again = what == "requeue" or what in ANEW
    able = [job for job in fit if not again or job.withheld is None or job.sealed is not None]
    gone = len(fit) - len(able)
    capped = len(jids) > MOST or (not jids and len(found) >= MOST)
    some = f"{number(len(able))} job{'s' * (len(able) != 1)}"
    effects = _effects(what, able, gone)
    if capped:
        effects.append(
            ("waiting", f"More jobs match: at most {number(MOST)} are included at a time.")
        )
    elif looked_back_to is not None:
        text = f"Jobs older than {exact(looked_back_to)} were not searched, and are not included."
        effects.append(
            ("waiting", f"{text} A narrower search, such as one job type, reaches them.")
        )
    left = sum(job.state not in STATES[what] for job in found)
    if left:
        effects.append(("skipped", f"{number(left)} are left out: {why}."))
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
        reason="optional" if able and (what == "cancel" or what in ANEW) else "",
    )


def _nothing(looked_back_to: datetime | None, why: str) -> list[tuple[str, str]]:
    """Return the facts for an action without any jobs."""
    if looked_back_to is None:
        return [("skipped", f"None of them can be included: {why}.")]
    text = f"None was found back to {exact(looked_back_to)}; older jobs were not searched."
    return [("waiting", f"{text} A narrower search, such as one job type, reaches them.")]


def _effects(what: str, able: list[Any], gone: int) -> list[tuple[str, str]]:
    """Return the effects of an action; *gone* jobs have lost their arguments."""
    if what == "dismiss":
        return [("skipped", "They no longer appear in lists of dead jobs; their rows are kept.")]
    if what == "cancel":
        each = "It" if len(able) == 1 else "Each"
        effects = [
            (
                "skipped",
                f"{each} becomes dead, what it holds is released, and it can be run again.",
            ),
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
    if others and what not in ANEW:
        effects.append(("waiting", f"{number(others)} of them did not die: they run twice."))
    if gone:
        effects.append(("dead", f"{number(gone)} more cannot be included: {_NOT_KEPT}."))
    twice = sum(job.replayed_by is not None for job in able)
    if twice:
        effects.append(("waiting", f"{number(twice)} of them were run again before."))
    return effects


def _from(visit: Visit, jids: list[str]) -> str:
    return visit.link("job", jid=jids[0]) if len(jids) == 1 else visit.link("jobs")


def _by_jid(visit: Visit, jids: list[str]) -> list[Any]:
    job = visit.joblog.Job
    return list(visit.joblog.jobs.where(job.jid.in_(jids)))


def _ask_unlock(visit: Visit) -> Question | None:
    log, given = visit.joblog, visit.query
    key, slot, fence = given.get("key", ""), int_of(given.get("slot")), int_of(given.get("fence"))
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
        effects.append((look, f"{who} is {state}; its next run takes the key again, or waits."))
    if waiter is not None:
        effects.append(("waiting", f"{short(waiter.jid)} enters next, with fence {fence + 1}."))
    if stopped is None:
        effects.append(("dead", "Two jobs may write at once unless the store checks the fence."))
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


def _ask_mute(visit: Visit, what: str) -> Question | None:
    given, mute = visit.query, what == "mute"
    find = problem_of if mute else mute_of
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
        spans=[(name, text) for name, (text, _) in SPANS.items()] if mute else (),
    )
