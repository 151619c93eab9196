"""Critical sections checked against a model: any events in any order, on real databases."""

from __future__ import annotations

import dataclasses
import itertools
import time

import tiers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peewee import MySQLDatabase

from dramatiq_joblog import Exclusive
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.recording.events import Ended, Started
from dramatiq_joblog.recording.exclusive import Sections
from dramatiq_joblog.recording.heartbeat import Heartbeat
from dramatiq_joblog.recording.tokens import new_token
from dramatiq_joblog.recording.transitions import Transitions

#: Milliseconds that time leaps when leases run out; and half of what a run trusts its own for.
LEAP = 1_000_000


@dataclasses.dataclass
class Held:
    """A run, or a manual lock, that was admitted to the section."""

    jid: str
    attempt: int
    token: str
    lease: object
    process: int


class Process:
    """One worker process: its own statements, and a row with heartbeats."""

    def __init__(self, joblog, number):
        self.number = number
        self.transitions = Transitions(joblog.core.tables)
        self.sections = Sections(self.transitions)
        self.heartbeat = Heartbeat(joblog.core.tables, timeout=30_000)
        self.heartbeat.beat()
        self.locks = self.transitions.locks
        self.locks.leases.attach(self.heartbeat.process, 30_000)


class SectionMachine(RuleBasedStateMachine):
    """Jobs that begin, end, are killed, delivered twice, and leases that expire."""

    joblog = None

    @initialize(limit=st.integers(1, 3))
    def empty(self, limit):
        for model in (self.joblog.Job, self.joblog.Failure, self.joblog.Worker, self.joblog.Lock):
            model.delete().execute()
        exclusive = Exclusive("key", limit=limit, on_conflict="wait", ttl=60_000)
        self.limit, self.section = limit, dataclasses.asdict(exclusive)
        self.numbers = itertools.count()
        self.processes = [Process(self.joblog, next(self.numbers)) for _ in range(2)]
        self.dead: set[int] = set()
        self.held: list[Held] = []
        self.attempts: dict[str, int] = {}
        self.fence = 0

    # What the model knows

    def alive(self):
        """Return the holders in the section that have not lost their lease."""
        return [h for h in self.held if h.process not in self.dead and not h.lease.lost]

    def grant(self, held):
        assert held.lease.fence > self.fence
        self.fence = held.lease.fence
        self.held.append(held)

    def in_use(self):
        now, rows = self.processes[0].locks.now(), self.joblog.Lock.select()
        return [
            row
            for row in rows
            if row.kind == SECTION
            and row.owner is not None
            and int(row.expires_at.timestamp() * 1000) > now
        ]

    # Steps

    @rule(
        job=st.sampled_from("abcd"),
        which=st.integers(0, 1),
        redelivered=st.booleans(),
        policy=st.sampled_from(["wait", "retry", "skip", "fail"]),
    )
    def begin(self, job, which, redelivered, policy):
        process, attempt = self.processes[which], self.attempts.setdefault(job, 1)
        known = self.joblog.Job.get_or_none(self.joblog.Job.jid == job)
        others_wait = self.joblog.waiters("key").where(self.joblog.Job.jid != job).count()
        room = self.limit - len([row for row in self.in_use() if row.owner != job])
        token, now = new_token(None), int(time.time() * 1000)
        columns = {"jid": job, "actor": "work", "queue": "default", "state": "started"}
        columns["worker"] = "here"
        columns |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        columns |= {"attempt": attempt, "token": token, "section": "key"}
        columns["process"] = process.heartbeat.process
        section = self.section | {"on_conflict": policy}
        event = Started(columns, section=section, redelivered=redelivered)
        answer = process.sections.write([event])[job]

        if answer.granted:
            self.grant(Held(job, attempt, token, answer.lease, process.number))
        assert answer.granted == (answer.lease is not None)
        fresh = known is None or known.state in ("waiting", "retrying")
        if fresh and room > 0 and not others_wait:
            # A free slot, or one with an expired lease, goes to the one who asks.
            assert answer.granted
        if room <= 0 and not any(row.owner == job for row in self.in_use()):
            assert not answer.granted
        if known is None and others_wait >= room:
            # Nobody who comes new passes those that wait.
            assert not answer.granted
        after = self.joblog.Job.get_or_none(self.joblog.Job.jid == job)
        if known is not None and known.state in ("started", "lost") and not answer.granted:
            # What was cut off is neither dropped nor fails.
            assert after.state in ("started", "lost", "waiting")

    @precondition(lambda self: self.held)
    @rule(data=st.data(), state=st.sampled_from(["finished", "dead", "retrying", "skipped"]))
    def end(self, data, state):
        """End a run, even one that was superseded."""
        held = data.draw(st.sampled_from(self.held))
        if held.process in self.dead or held.attempt == 0:
            return
        before = {row.slot: row for row in self.joblog.Lock.select()}
        now = int(time.time() * 1000)
        columns = {"jid": held.jid, "actor": "work", "queue": "default", "state": state}
        columns |= dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
        columns |= {"attempt": held.attempt, "token": held.token, "section": "key"}
        columns |= {"eta": now} if state == "retrying" else {"finished_at": now}
        self.process(held).sections.write([Ended(columns, section=self.section)])
        self.held.remove(held)
        if state == "retrying":
            self.attempts[held.jid] = max(self.attempts[held.jid], held.attempt + 1)
        for row in self.joblog.Lock.select().where(self.joblog.Lock.kind == SECTION):
            was = before.get(row.slot)
            if was is not None and was.owner is not None and row.owner is None:
                assert (held.jid, held.token) == (was.owner, was.token)

    @rule(which=st.integers(0, 1))
    def by_hand(self, which):
        process = self.processes[which]
        room = len(self.in_use()) < self.limit
        token = new_token(None)
        claim = Claim(SECTION, "key", "hand", token, 60_000, limit=self.limit, by_hand=True)
        with process.transitions.atomic():
            lease = process.locks.take(claim)
        assert room == (lease is not None)
        if lease is not None:
            self.grant(Held("hand", 0, token, lease, process.number))

    @precondition(lambda self: any(h.attempt == 0 for h in self.held))
    @rule(data=st.data())
    def end_by_hand(self, data):
        held = data.draw(st.sampled_from([h for h in self.held if h.attempt == 0]))
        before = len(self.in_use())
        if held.process not in self.dead:
            mine = [row for row in self.in_use() if row.token == held.token]
            self.process(held).locks.release(SECTION, "key", "hand", held.token)
            assert before - len(mine) == len(self.in_use())
        self.held.remove(held)

    @rule()
    def leap(self):
        """Let time pass without any heartbeat."""
        lock, worker = self.joblog.Lock, self.joblog.Worker
        lock.update(expires_at=lock.expires_at - LEAP).execute()
        worker.update(heartbeat_at=worker.heartbeat_at - LEAP).execute()
        for held in self.held:
            # By hand it is one lease, and of a job one for each of its sections.
            for lease in getattr(held.lease, "leases", [held.lease]):
                lease.deadline -= LEAP / 1000

    @rule(which=st.integers(0, 1))
    def renew(self, which):
        self.processes[which].heartbeat.beat()
        self.processes[which].locks.leases.renew()

    @rule(which=st.integers(0, 1))
    def kill(self, which):
        """Kill a process; another replaces it, and this host knows of its end."""
        process = self.processes[which]
        self.dead.add(process.number)
        worker = self.joblog.Worker
        now = process.locks.now()
        mine = worker.process == process.heartbeat.process
        worker.update(ended_at=now).where(mine).execute()
        self.processes[which] = Process(self.joblog, next(self.numbers))

    @rule()
    def clean(self):
        self.processes[0].locks.clean(idle=-1, settled=-1)

    def process(self, held):
        return next(p for p in self.processes if p.number == held.process)

    # What must hold

    @invariant()
    def no_more_than_the_limit(self):
        if hasattr(self, "limit"):
            assert len(self.alive()) <= self.limit
            assert len(self.in_use()) <= self.limit

    @invariant()
    def nobody_holds_two(self):
        if hasattr(self, "limit"):
            owners = [row.owner for row in self.in_use() if row.owner != "hand"]
            assert len(owners) == len(set(owners))
            running = [held.jid for held in self.alive() if held.jid != "hand"]
            assert len(running) == len(set(running))


def test_sections_against_a_model(joblog):
    """Never two in a slot, released by another, a decreasing fence, or stuck."""
    machine = type("Machine", (SectionMachine,), {"joblog": joblog})
    # MariaDB takes several statements where the others take one.
    examples = 10 if isinstance(joblog.database, MySQLDatabase) else 30
    run = settings(max_examples=tiers.examples(examples), stateful_step_count=30, deadline=None)
    with joblog.database.connection_context():
        run_state_machine_as_test(machine, settings=run)
