"""Several hosts, one broker and one database: one host is disconnected for a while, one dies."""

from __future__ import annotations

import contextlib

import brokers
import dramatiq
import fleet
import pytest
import servers

from dramatiq_joblog import JobLog

pytestmark = [
    pytest.mark.process,
    pytest.mark.full,
    pytest.mark.skipif(fleet.why_not() is not None, reason=str(fleet.why_not())),
    # With servers and three hosts to start.
    pytest.mark.timeout(240),
]

START = {
    "redis": servers.start_redis,
    "rabbit": servers.start_rabbitmq,
    "postgres": servers.start_postgres,
}


class Story:
    """Three hosts, each running one of the jobs A, B and C.

    Parameters:
      folder: Where jobs record their begin and end, and wait to be released.
      eventually: The fixture.
    """

    def __init__(self, kind, folder, eventually) -> None:
        self.folder = folder
        self.eventually = eventually
        self.stack = contextlib.ExitStack()
        database, broker = (self.start(kind) for kind in ("postgres", kind))
        url = broker.url
        if kind == "rabbit":
            # Seconds after which each side takes the other to be gone.
            url += "?heartbeat=2"
        self.joblog = self.stack.enter_context(contextlib.closing(JobLog(database.url)))
        self.joblog.create_tables()
        self.broker = brokers.connect(url, namespace="fleet")
        self.stack.callback(brokers.disconnect, self.broker)
        self.broker.declare_queue("default", ensure=True) if kind == "rabbit" else None
        env = {
            "FLEET_BROKER": url,
            "FLEET_DATABASE": database.url,
            "FLEET_FOLDER": str(folder),
            # One message at a time, so that each host has one of three jobs.
            "dramatiq_queue_prefetch": "1",
        }
        self.hosts = {}
        for number in (1, 2, 3):
            host = fleet.Host(number, "fleet_worker", folder, env)
            self.stack.callback(host.stop)
            self.hosts[host.name] = host
        self.messages = {}

    def start(self, kind):
        server = START[kind](address=fleet.HUB)
        self.stack.callback(server.stop)
        return server

    def send(self, name):
        message = dramatiq.Message("default", "waits", (name,), {}, {})
        self.messages[name] = self.broker.enqueue(message)

    def job(self, name):
        return self.joblog.get(self.messages[name].message_id)

    def began(self, name):
        """Wait until a job has begun, and return the host."""

        def where():
            return [h for h in self.hosts if self.noted("began", name, h)]

        return self.eventually(where, timeout=60)[0]

    def noted(self, what, name, host):
        return (self.folder / f"{what}-{name}-{host}").exists()

    def let(self, name, host):
        """Let a job on a host end, and wait until its body has ended."""
        (self.folder / f"go-{name}-{host}").touch()
        self.eventually(lambda: self.noted("ended", name, host), timeout=60)

    def let_anywhere(self, name):
        """Let a job end on the host where it begins again."""
        for host in self.hosts:
            (self.folder / f"go-{name}-{host}").touch()

    def until(self, name, state):
        self.eventually(lambda: self.job(name).state == state, timeout=60)


@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_one_host_is_cut_off_and_one_dies(tmp_path, eventually, kind):
    """Each job ends once and is recorded, though one host was disconnected and one died."""

    def tell():
        story = Story(kind, tmp_path, eventually)
        with story.stack:
            play(story)

    fleet.in_own_network(tell)


def play(story):
    for name in "ABC":
        story.send(name)
    a, b, c = (story.began(name) for name in "ABC")
    assert len({a, b, c}) == 3
    first = {name: story.job(name).token for name in "AB"}

    story.hosts[a].cut_off()
    story.hosts[b].kill()
    for name in "AB":
        story.until(name, "lost")
    assert "started" == story.job("C").state
    # The host that is cut off ends its run: it cannot report it, and keeps it.
    story.let("A", a)

    story.let("C", c)
    story.until("C", "finished")
    # The host that is left takes over, one job after the other.
    one = story.eventually(lambda: [n for n in "AB" if story.noted("began", n, c)], timeout=60)[0]
    story.eventually(lambda: story.job(one).token != first[one], timeout=60)
    [interrupted] = story.job(one).failures
    assert ("interrupted", first[one]) == (interrupted.outcome, interrupted.token)

    story.hosts[a].reconnect()
    story.eventually(lambda: is_alive(story.joblog, a), timeout=60)
    # What it kept was written before that, and changed nothing.
    assert "started" == story.job(one).state

    story.let(one, c)
    story.until(one, "finished")
    [other] = {*"AB"} - {one}
    story.let_anywhere(other)
    story.until(other, "finished")

    # If nobody had taken A over when its host came back, what that host kept is its end.
    told = story.job("A").token == first["A"]
    assert not (told and one == "A")
    for name, cut_off in (("A", None if told else 1), ("B", 1), ("C", None)):
        job = story.job(name)
        # Where no name shows that both were one delivery, the run's own end is kept instead.
        ended_itself = (first.get(name), "finished") in {(f.token, f.outcome) for f in job.failures}
        interruptions = None if ended_itself else cut_off
        assert ("finished", 1, interruptions) == (job.state, job.attempt, job.interruptions)
        expected = [first[name]] if interruptions else []
        assert expected == [f.token for f in job.failures if f.outcome == "interrupted"]
        assert (told and name == "A") == (job.token == first.get(name))
    assert 3 == story.joblog.jobs.count()


def is_alive(joblog, host):
    """Return whether a host sends heartbeats again."""
    row = joblog.Worker.get(joblog.Worker.host == host)
    return row.swept_at is None and row.ended_at is None
