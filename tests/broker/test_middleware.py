"""Options of actors and messages, and their effect on the row."""

from __future__ import annotations

import threading
from enum import Enum

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO, MiddlewareError, SkipMessage, default_middleware
from peewee import CharField, ForeignKeyField, IntegerField, Model, SqliteDatabase
from playhouse.db_url import connect

from dramatiq_joblog import (
    ConfigurationError,
    Job,
    JobLog,
    JobLogMiddleware,
    JobNotFound,
    current_job,
)


class JobType(str, Enum):
    """The application's job types."""

    FINANCIAL_DATA_IMPORT = "financial_data_import"
    RECONCILIATION = "reconciliation"
    USER_VERIFICATION = "user_verification"


FINANCIAL = (JobType.FINANCIAL_DATA_IMPORT, JobType.RECONCILIATION)


@pytest.fixture
def broker(joblog, make_broker):
    """Return a broker with the log."""
    stack = [*(m() for m in default_middleware), AsyncIO()]
    return make_broker("stub", "last", joblog=joblog, middleware=stack)


@pytest.fixture
def run(broker, worker):
    """Return a function that runs all messages sent."""

    def until_done():
        with worker(broker):
            broker.join("default", fail_fast=False)

    return until_done


# job_type


@pytest.mark.parametrize("job_type", ["reconciliation", JobType.RECONCILIATION])
def test_job_type(joblog, broker, run, job_type):
    """A job type is a string or a member of a ``str`` enum, and stored as text."""

    @dramatiq.actor(job_type=job_type)
    def works():
        pass

    message = works.send()
    run()

    assert "reconciliation" == joblog.get(message.message_id).job_type
    assert 1 == joblog.jobs.of_type(job_type).count()


def test_job_type_of_a_message(joblog, broker, run):
    """A message's job type overrides its actor's."""

    @dramatiq.actor(job_type=JobType.RECONCILIATION)
    def works():
        pass

    message = works.send_with_options(job_type=JobType.USER_VERIFICATION.value)
    run()

    assert "user_verification" == joblog.get(message.message_id).job_type


@pytest.mark.parametrize(
    ("job_type", "text"),
    [
        ("reconcilation", "did you mean 'reconciliation'?"),
        ("zzz", "use one of"),
        (7, "a text or a str enum member is needed"),
    ],
)
def test_unknown_job_type(sqlite_url, make_broker, job_type, text):
    """An actor with an unknown job type is refused when it is declared, naming the nearest."""
    make_broker("stub", "last", joblog=JobLog(sqlite_url, job_types=JobType))

    with pytest.raises(ConfigurationError, match="actor 'works'") as refused:
        dramatiq.actor(lambda: None, actor_name="works", job_type=job_type)

    assert text in str(refused.value)
    assert repr(job_type) in str(refused.value)


def test_unknown_job_type_of_a_message(sqlite_url, make_broker):
    """A message with an unknown job type is refused when it is sent, and not enqueued."""
    broker = make_broker("stub", "last", joblog=JobLog(sqlite_url, job_types=JobType))
    works = dramatiq.actor(lambda: None, actor_name="works")

    with pytest.raises(ConfigurationError, match=r"works.*'reconciliation'"):
        works.send_with_options(job_type="reconcilation")

    assert broker.queues["default"].empty()


def test_an_unknown_option(broker):
    """An unknown option is refused by Dramatiq when the actor is declared."""
    with pytest.raises(ValueError, match="job_typ"):
        dramatiq.actor(lambda: None, actor_name="works", job_typ="reconciliation")


@pytest.mark.parametrize("options", [{"acks": "soon"}, {"start": "later"}])
def test_an_unknown_setting(sqlite_url, options):
    """An unknown setting of the middleware is refused, with the known ones."""
    with pytest.raises(ConfigurationError, match="is not known; use one of"):
        JobLogMiddleware(JobLog(sqlite_url), **options)


# job_user


@pytest.mark.parametrize(
    ("args", "kwargs", "user"),
    [
        ((1, 7), {}, 7),
        ((1,), {"user_id": 8}, 8),
        ((1,), {}, 9),
        ((1, "ada"), {}, "ada"),
        ((1, None), {}, None),
    ],
)
def test_job_user_is_a_parameter(joblog, broker, run, args, kwargs, user):
    """The user's id is found by the parameter's name, however it is passed."""

    @dramatiq.actor(job_user="user_id")
    def works(series, user_id=9):
        pass

    message = works.send(*args, **kwargs)
    run()

    assert user == joblog.get(message.message_id).user_id


def test_job_user_is_a_callable(joblog, broker, run):
    """A callable is given the job's arguments and returns the user's id."""

    @dramatiq.actor(job_user=lambda order, **_: order["customer"])
    def works(order, hurry=False):
        pass

    message = works.send({"customer": 7}, hurry=True)
    run()

    assert [message.message_id] == [job.jid for job in joblog.jobs.for_user(7)]


def test_job_user_of_a_message(joblog, broker, run):
    """A user given with the message takes precedence."""

    @dramatiq.actor(job_user="user_id")
    def works(user_id):
        pass

    works.send_with_options(args=(1,), job_user=2)
    run()

    assert [2] == [job.user_id for job in joblog.jobs]


def test_job_user_that_fails(joblog, broker, run):
    """If a callable raises, the job only lacks its user, and a note says why."""

    @dramatiq.actor(job_user=lambda order: order["customer"])
    def works(order):
        pass

    message = works.send({})
    run()

    job = joblog.get(message.message_id)
    assert ("finished", None) == (job.state, job.user_id)
    assert "customer" in job.note


@pytest.mark.parametrize("job_user", ["userid", 7])
def test_job_user_names_no_parameter(broker, job_user):
    """A *job_user* that is not a parameter of the actor is refused when it is declared."""

    def works(user_id, series):
        pass

    with pytest.raises(ConfigurationError, match=r"actor 'works' .*user_id, series") as refused:
        dramatiq.actor(works, job_user=job_user)

    assert isinstance(refused.value, MiddlewareError)
    assert repr(job_user) in str(refused.value)


# Arguments


def test_arguments_are_kept(joblog, broker, run):
    """Arguments are kept as JSON."""

    @dramatiq.actor
    def works(*args, **kwargs):
        pass

    message = works.send(1, "x", [None], when={"a": 1.5})
    run()

    job = joblog.get(message.message_id)
    assert ([1, "x", [None]], {"when": {"a": 1.5}}) == (job.args, job.kwargs)


def test_arguments_are_left_out(sqlite_database, make_broker, worker):
    """With ``store_args=False`` no argument reaches the log."""
    joblog = JobLog(sqlite_database, store_args=False)
    broker = make_broker("stub", "last", joblog=joblog)
    works = dramatiq.actor(lambda card: None, actor_name="works")
    with worker(broker):
        message = works.send("4111 1111")
        broker.join("default")

    job = joblog.get(message.message_id)
    assert (None, None, None) == (job.args, job.kwargs, job.note)
    joblog.close()


def test_arguments_that_are_no_json(joblog, make_broker, worker):
    """Arguments without a JSON form are stored as text, with a note."""
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        broker = make_broker("stub", "last", joblog=joblog)
        works = dramatiq.actor(lambda *args: None, actor_name="works")
        with worker(broker):
            message = works.send({1, 2}, {(1, 2): b"x"})
            broker.join("default")
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())

    job = joblog.get(message.message_id)
    assert "finished" == job.state
    assert "{1, 2}" == job.args[0]
    assert "JSON" in job.note


@pytest.mark.parametrize(
    "hostile", ["a\x00b", "\ud800", "x" * 1_000_000, "'; DROP TABLE joblog_job; --", "%s ? {}"]
)
def test_hostile_text(joblog, broker, run, hostile):
    """A NUL byte, a lone surrogate, a megabyte or SQL, in an argument and an error, is logged."""

    @dramatiq.actor(max_retries=0, job_user="user_id")
    def breaks(user_id):
        raise ValueError(user_id)

    message = breaks.send(hostile)
    run()

    job = joblog.get(message.message_id)
    assert ("dead", "ValueError") == (job.state, job.error_type)
    [failure] = job.failures
    assert "ValueError" in failure.traceback
    assert 11_000 > len(job.error_message) >= min(len(hostile), 10_000)
    assert 0 == joblog.core.writer.lost


def test_an_error_without_a_text(joblog, broker, run):
    """An error whose own ``str`` raises is logged by its name."""

    class Rude(Exception):
        def __str__(self):
            raise RuntimeError

    @dramatiq.actor(max_retries=0)
    def breaks():
        raise Rude

    message = breaks.send()
    run()

    job = joblog.get(message.message_id)
    assert ("dead", "Rude") == (job.state, job.error_type)
    assert "RuntimeError" in job.error_message


def test_a_traceback_tells_the_line_and_no_variables(joblog, broker, run):
    """A failure keeps the whole traceback with its causes, and no local variable."""

    @dramatiq.actor(max_retries=0)
    def breaks():
        password = "hunter" + "2"
        try:
            {}["cause"]
        except KeyError as e:
            raise ValueError(len(password)) from e

    message = breaks.send()
    run()

    [failure] = joblog.get(message.message_id).failures
    assert "KeyError: 'cause'" in failure.traceback
    assert '{}["cause"]' in failure.traceback
    assert "hunter2" not in failure.traceback


def test_a_jid_of_any_length(joblog, broker, run):
    """A message id longer than the column still identifies one job."""

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def breaks():
        raise ValueError

    message = breaks.message()
    object.__setattr__(message, "message_id", "j" * 1000)
    broker.enqueue(message)
    run()

    assert ("dead", 2) == (joblog.get("j" * 1000).state, joblog.get("j" * 1000).attempt)
    assert 1 == joblog.jobs.count()


# In the actor


def test_current_job(joblog, broker, run):
    """In an actor ``current_job()`` is its job: jid, attempt, and meta that is stored."""
    seen = []

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def works():
        job = current_job()
        job.meta["rows"] = 12
        seen.append((job.jid, job.attempt))
        if job.attempt == 1:
            raise ValueError

    message = works.send()
    run()

    assert [(message.message_id, 1), (message.message_id, 2)] == seen
    assert {"rows": 12} == joblog.get(message.message_id).meta
    assert current_job() is None


def test_current_job_in_an_async_actor(joblog, broker, run):
    """An async actor sees its own job too."""
    seen = []

    @dramatiq.actor
    async def works():
        current_job().meta["rows"] = 12
        seen.append(current_job().jid)

    message = works.send()
    run()

    assert [message.message_id] == seen
    assert {"rows": 12} == joblog.get(message.message_id).meta


def test_no_current_job_without_a_log(joblog, broker, run):
    """An actor that is not logged has no current job, even after one that is."""
    seen = []

    @dramatiq.actor
    def logged():
        pass

    @dramatiq.actor(log_job=False, priority=10)
    def silent():
        seen.append(current_job())

    logged.send()
    silent.send()
    run()

    assert [None] == seen


def test_meta_that_is_no_json(joblog, broker, run):
    """Meta without a JSON form is stored as text."""

    @dramatiq.actor
    def works():
        current_job().meta["seen"] = {7}

    message = works.send()
    run()

    assert {"seen": "{7}"} == joblog.get(message.message_id).meta


def test_a_job_sent_by_a_job(joblog, broker, run):
    """A job knows the job that sent it, and the first of its family."""

    @dramatiq.actor
    def grandchild():
        pass

    @dramatiq.actor
    def child():
        grandchild.send()

    @dramatiq.actor
    def parent():
        child.send()

    message = parent.send()
    run()

    rows = {job.actor: job for job in joblog.jobs}
    assert (None, None) == (rows["parent"].parent_jid, rows["parent"].root_jid)
    assert message.message_id == rows["child"].parent_jid == rows["child"].root_jid
    assert rows["child"].jid == rows["grandchild"].parent_jid
    assert message.message_id == rows["grandchild"].root_jid


def test_a_job_asks_for_others(joblog, broker, run):
    """A job sees another in progress for its user, but not itself, so that its retry can run."""
    seen = []
    both = threading.Barrier(2, timeout=10)

    @dramatiq.actor(
        job_type=JobType.RECONCILIATION, job_user="user_id", max_retries=1, min_backoff=1
    )
    def reconcile(user_id):
        others = (
            joblog.jobs.in_progress()
            .of_type(*FINANCIAL)
            .for_user(user_id)
            .excluding(current_job().jid)
        )
        both.wait()
        seen.append((user_id, others.exists()))
        both.wait()

    for users in ([1, 1], [2, 3]):
        for user in users:
            reconcile.send(user)
        run()

    assert [(1, True), (1, True), (2, False), (3, False)] == sorted(seen)


@pytest.mark.new_database
def test_a_shop_of_the_users_own(database_url, make_broker, worker):
    """A custom model has its table, its foreign key, its backref and its columns."""
    database = connect(database_url)

    class User(Model):
        name = CharField()

        class Meta:
            database = None

    User.bind(database)

    class ShopJob(Job):
        user = ForeignKeyField(User, backref="jobs", null=True)
        tenant = CharField(null=True, index=True)
        weight = IntegerField(default=3)

        class Meta:
            table_name = "shop_job"

    joblog = JobLog(database, model=ShopJob)
    with database.connection_context():
        database.create_tables([User])
        ada = User.create(name="Ada")
    joblog.create_tables()
    joblog.create_tables()
    broker = make_broker("stub", "last", joblog=joblog)
    busy = []

    @dramatiq.actor(job_type="reconciliation", job_user="user_id", tenant="north")
    def reconcile(user_id):
        jid = current_job().jid
        financial = ada.jobs.in_progress().of_type(*FINANCIAL)
        busy.append((financial.exists(), financial.excluding(jid).exists()))

    with worker(broker):
        own = reconcile.send(ada.id)
        heavy = reconcile.send_with_options(args=(None,), tenant="south", weight=9)
        stranger = reconcile.send(404)
        broker.join("default")

    with database.connection_context():
        job = joblog.get(own.message_id)
        assert ("finished", "Ada", "north", 3) == (job.state, job.user.name, job.tenant, job.weight)
        assert (True, False) in busy
        assert [own.message_id] == [j.jid for j in joblog.jobs.for_user(ada)]
        assert [own.message_id] == [j.jid for j in ada.jobs.finished()]
        job = joblog.get(heavy.message_id)
        assert (None, "south", 9) == (job.user, job.tenant, job.weight)
        # PostgreSQL refuses a user that does not exist: the job is logged without.
        assert "finished" == joblog.get(stranger.message_id).state
        if database.table_exists("joblog_job"):
            # Those of the plain model, which this log does not use.
            assert [(0,)] == list(database.execute_sql("SELECT count(*) FROM joblog_job"))
    joblog.close()
    with database.connection_context():
        database.drop_tables([joblog.Job, joblog.Failure, User])


def test_a_column_that_cannot_be_filled(tmp_path):
    """A custom column that is neither nullable nor has a default is refused."""

    class Strict(Job):
        tenant = CharField()

    with pytest.raises(ConfigurationError, match=r"'tenant' of Strict .*null=True or default"):
        JobLog(f"sqlite:///{tmp_path}/j.db", model=Strict)


def test_a_model_that_is_no_job(tmp_path):
    """A model that does not inherit from ``Job`` is refused."""
    with pytest.raises(ConfigurationError, match=r"not a subclass of dramatiq_joblog\.Job"):
        JobLog(f"sqlite:///{tmp_path}/j.db", model=Model)


def test_one_model_for_two_databases(tmp_path):
    """A model that is bound to one log is refused by another."""

    class Once(Job):
        pass

    JobLog(SqliteDatabase(tmp_path / "a.db"), model=Once)
    with pytest.raises(ConfigurationError, match="Once is bound to another database"):
        JobLog(SqliteDatabase(tmp_path / "b.db"), model=Once)


# Sending


def test_a_send_never_fails_for_the_log(tmp_path, make_broker, worker, caplog):
    """A log whose folder does not exist affects neither ``send()`` nor the job."""
    joblog = JobLog(f"sqlite:///{tmp_path}/missing/jobs.db", on_outage="drop")
    broker = make_broker("stub", "last", joblog=joblog)
    runs = []
    works = dramatiq.actor(lambda: runs.append(1), actor_name="works")

    with worker(broker):
        works.send()
        broker.join("default")

    assert [1] == runs
    assert "is unavailable: unable to open database file" in caplog.text
    assert 3 == joblog.core.writer.lost
    joblog.close()


def test_a_dropped_message_keeps_its_row_enqueued(joblog, broker):
    """A message that no worker has taken yet is enqueued, with its time and its arguments."""

    @dramatiq.actor(max_retries=5)
    def works(n):
        pass

    message = works.send(1)

    job = joblog.get(message.message_id)
    assert ("enqueued", 1, 5, [1]) == (job.state, job.attempt, job.max_retries, job.args)
    assert message.message_timestamp == round(job.enqueued_at.timestamp() * 1000)
    assert (None, None, None) == (job.started_at, job.finished_at, job.worker)


def test_a_delayed_message(joblog, broker):
    """A message that is sent with a delay is delayed, until its eta."""
    works = dramatiq.actor(lambda: None, actor_name="works")
    message = works.send_with_options(delay=60_000)

    job = joblog.get(message.message_id)
    assert ("delayed", "default") == (job.state, job.queue)
    assert 59 <= (job.eta - job.enqueued_at).total_seconds() <= 62


def test_a_middleware_that_puts_a_message_back(joblog, make_broker, worker):
    """A copy that is enqueued before the message is skipped has the same attempt."""
    back = []

    class PutsBack(dramatiq.Middleware):
        def before_process_message(self, broker, message):
            if not back:
                back.append(message.message_id)
                # It comes once this delivery has ended.
                broker.enqueue(message.copy(), delay=500)
                raise SkipMessage("not now")

    stack = [*(m() for m in default_middleware), PutsBack()]
    broker = make_broker("stub", "first", joblog=joblog, middleware=stack)
    works = dramatiq.actor(lambda: None, actor_name="works")
    with worker(broker):
        message = works.send()
        broker.join("default")

    job = joblog.get(message.message_id)
    assert ("finished", 1, []) == (job.state, job.attempt, list(job.failures))


def test_a_log_that_knows_no_such_job(joblog):
    """An unknown jid is an error that contains it."""
    with pytest.raises(JobNotFound, match="no job 'nothing'") as missing:
        joblog.get("nothing")
    assert "nothing" == missing.value.jid
