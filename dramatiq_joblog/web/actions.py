"""Actions of users: carried out, and recorded."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dramatiq.logging import get_logger
from starlette.responses import RedirectResponse

from dramatiq_joblog.admin.cancel import Cancelling
from dramatiq_joblog.broker.arguments import signature_of
from dramatiq_joblog.broker.bulk import requeue_named
from dramatiq_joblog.errors import (
    CancelError,
    JobLogError,
    JobNotFound,
    LockNotAcquired,
    RequeueError,
    RequeueInterruptedError,
)
from dramatiq_joblog.schema.models import to_millis

from . import tickets
from .formats import short
from .named import arguments_of
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
    from collections.abc import Callable, Sequence

    from starlette.datastructures import FormData
    from starlette.responses import Response

    from .context import Visit

#: The number of refusals that are recorded with their reasons.
_TOLD = 5
#: The maximum number of jids in a URL.
MOST_IN_ADDRESS = 100


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
    if what not in STATES:
        return visit.sorry(404, "No such action", f"There is no action {what!r}.")
    jids, words = _texts(form, "jid"), _texts(form, "q")
    if not jids and not words:
        return visit.sorry(400, "Nothing is selected", "Select a job first.")
    but = set(_texts(form, "but"))
    jids = jids[:MOST] or [job.jid for job in jobs_matching(visit, what, words).jobs]
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
    elif what in ANEW:
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
    done = Cancelling(visit.joblog.core).named(jids, who=visit.who, reason=reason)
    _write_down(visit, "cancel", done.cancelled, done.refused)
    return done.cancelled, done.refused


def _requeue(visit: Visit, jids: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Run jobs again; return the new jids, and the reasons of refusals."""
    log = visit.joblog
    try:
        done = requeue_named(log.core, jids, who=visit.who, broker=visit.site.broker)
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
    done, refused = _rerun(visit, [first], "") if what in ANEW else _requeue(visit, [first])
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
        if not isinstance(given, str) or given == as_json(value):
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


def _unlock(visit: Visit, form: FormData, back: str) -> Response:
    reason = _reason(form)
    if not reason:
        return visit.sorry(400, "A reason is needed", "Enter a reason; it is recorded.")
    try:
        visit.joblog.unlock(
            str(form.get("key", "")),
            slot=int_of(form.get("slot")),
            fence=int_of(form.get("fence")),
            reason=reason,
            who=visit.who,
        )
    except LockNotAcquired:
        return _say(visit, "unlock", back, 0, 0)
    return _say(visit, "unlock", back, 1, 0)


def _mute(visit: Visit, form: FormData, back: str) -> Response:
    reason, span = _reason(form), SPANS.get(str(form.get("span", "")))
    if not reason:
        return visit.sorry(400, "A reason is needed", "Enter a reason; it is recorded.")
    if span is None:
        return visit.sorry(400, "Not muted", "Say for how long: a muted problem must come back.")
    problem = problem_of(visit, form.get("kind"), form.get("subject"))
    if problem is None:
        return _say(visit, "mute", back, 0, 0)
    until = to_millis(visit.joblog.now()) + span[1]
    visit.joblog.mute(problem, until=until, reason=reason, who=visit.who)
    return _say(visit, "mute", back, 1, 0)


def _unmute(visit: Visit, form: FormData, back: str) -> Response:
    muted = mute_of(visit, form.get("kind"), form.get("subject"))
    done = muted is not None and visit.joblog.unmute(muted, who=visit.who)
    return _say(visit, "unmute", back, int(done), 0)


def _reason(form: FormData) -> str:
    return str(form.get("reason", "")).strip()[:500]


def _texts(form: FormData, name: str) -> list[str]:
    return [value for value in form.getlist(name) if isinstance(value, str) and value]
