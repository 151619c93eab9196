"""Fixtures: real servers, a log, brokers, workers, and a guard against swallowed faults."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import logging
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dramatiq
import named_servers  # before the environment is cleaned for a test
import pytest
import tiers
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, default_middleware, raise_thread_exception
from dramatiq.middleware.time_limit import _CtypesTimeoutManager
from playhouse.test_utils import count_queries

from dramatiq_joblog import JobLog, JobLogMiddleware
from dramatiq_joblog.recording import mounts

if TYPE_CHECKING:
    import psutil
    from prepared import Command

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
UNIT = TESTS / "unit"

#: The environment variables of the package and its tests; a test sets what it needs.
OUR_VARIABLES = (
    "JOBLOG_DATABASE",
    "JOBLOG_TEST_MYSQL",
    "JOBLOG_TEST_POSTGRES",
    "JOBLOG_TEST_RABBITMQ",
    "JOBLOG_TEST_REDIS",
    "REDIS_URL",
)

#: Names of servers whose tests may be skipped even if CI is set, because they cannot be installed.
#: Read once, before a test clears the environment.
WITHOUT = os.environ.get("JOBLOG_TEST_WITHOUT", "").split()

#: The backends of a complete run.
BACKENDS = ("MariaDB", "PostgreSQL", "RabbitMQ", "Redis", "SQLite")

#: Backends requested by tests of this process: the name, and the version or the error.
_BACKENDS = pytest.StashKey[dict[str, str]]()

#: The servers that all pytest workers share, once one has been requested.
_SERVERS = pytest.StashKey[object]()

#: URLs of databases that already have the log's tables.
_WITH_TABLES = pytest.StashKey[set[str]]()

#: Files whose tests were collected, and the names of those in the first tier.
_COLLECTED = pytest.StashKey[dict[str, set[str]]]()

#: Whether a test's own body ran to its end, neither skipped nor failed.
_PASSED = pytest.StashKey[bool]()


# The guard


class CriticalRecords(logging.Handler):
    """Collects CRITICAL log records of Dramatiq and of the package.

    Dramatiq swallows every error of a middleware and only logs it: without this, a broken hook
    would pass every test.
    """

    def __init__(self) -> None:
        super().__init__(logging.CRITICAL)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store the record's text with its traceback."""
        self.texts.append(logging.Formatter("%(name)s: %(message)s").format(record))


@pytest.fixture(autouse=True)
def critical_guard(request):
    """Fail a test in which something was logged as CRITICAL, unless it is marked to expect it."""
    records = CriticalRecords()
    loggers = [logging.getLogger(name) for name in ("dramatiq", "dramatiq_joblog")]
    for logger in loggers:
        logger.addHandler(records)
    yield records
    for logger in loggers:
        logger.removeHandler(records)
    if request.node.get_closest_marker("expects_critical"):
        # A test that was skipped or failed may not have reached it.
        if not records.texts and request.node.stash.get(_PASSED, False):
            pytest.fail("the test is marked expects_critical, and nothing CRITICAL was logged")
    elif records.texts:
        pytest.fail("CRITICAL was logged:\n" + "\n".join(records.texts))


@pytest.fixture(autouse=True)
def clean_environment(critical_guard, monkeypatch, tmp_path):
    """Run each test without our environment variables, and with its own state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # In a container, all folders may be volatile, which the doctor would report.
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "no-mounts")
    for name in OUR_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def global_broker(critical_guard):
    """Give each test its own global broker."""
    broker = StubBroker()
    dramatiq.set_broker(broker)
    yield broker
    broker.close()
    dramatiq.set_broker(None)


@pytest.fixture(autouse=True)
def no_time_limits(critical_guard):
    """End the threads of Dramatiq's time limits, which their brokers do not end.

    Each ends within the second that it sleeps.
    """
    yield
    for thread in threading.enumerate():
        if isinstance(thread, _CtypesTimeoutManager):
            raise_thread_exception(thread.ident, SystemExit)


# Servers


@contextlib.contextmanager
def _or_skip(request, name: str):
    """Record the backend used; without its server, skip the test, or fail if CI is set."""
    import servers

    try:
        yield
    except servers.ServerMissingError as e:
        request.config.stash[_BACKENDS][name] = f"no {name}: {e}"
        _do_without(name, e)


def _shared_server(request, name: str):
    """Return a server shared by all pytest workers, started at the first request."""
    stash = request.config.stash
    with _or_skip(request, name):
        server = _servers(request.config).get(name)
    stash[_BACKENDS][name] = f"{server.name} ({server.origin})"
    return server


def _servers(config):
    """Return the provider of shared servers: this process, or the one that started it."""
    import sharing

    if _SERVERS not in config.stash:
        door = getattr(config, "workerinput", {}).get("servers")
        config.stash[_SERVERS] = sharing.Remote(*door) if door else sharing.Pool()
    return config.stash[_SERVERS]


def _do_without(name: str, error: Exception):
    """Skip, or fail if CI is set and the server is not listed as unavailable."""
    if os.environ.get("CI") and name not in WITHOUT:
        pytest.fail(f"CI is set and {error}", pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_server(request):
    """Return a Redis server for the session, or the stand-in."""
    import servers

    with _or_skip(request, "Redis"):
        server = servers.start_redis(_pytest_worker())
    request.config.stash[_BACKENDS]["Redis"] = f"{server.name} ({server.origin})"
    yield server
    server.stop()


@pytest.fixture(scope="session")
def real_redis():
    """Skip a test that stops or restarts its own Redis if only the stand-in is available."""
    import servers

    try:
        servers.find_redis(real=True)
    except servers.ServerMissingError as e:
        _do_without("Redis", e)


@pytest.fixture(scope="session")
def rabbit_server(request):
    """Return a RabbitMQ server for the session."""
    import sharing

    server = _shared_server(request, "RabbitMQ")
    with _or_skip(request, "RabbitMQ"):
        return sharing.rabbitmq_of(server, _pytest_worker())


def _pytest_worker() -> int:
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.fixture(scope="session")
def postgres_server(request):
    """Return a PostgreSQL server, which no test may stop."""
    return _shared_server(request, "PostgreSQL")


@pytest.fixture
def postgres(request):
    """Return the test's own PostgreSQL, which it may freeze."""
    import servers

    with _or_skip(request, "PostgreSQL"):
        server = servers.start_postgres()
    request.config.stash[_BACKENDS]["PostgreSQL"] = f"{server.name} ({server.origin})"
    yield server
    server.thaw()
    server.stop()


@pytest.fixture(scope="session")
def mysql_server(request):
    """Return a MariaDB server, or the named MySQL server, which no test may stop."""
    return _shared_server(request, "MariaDB")


@pytest.fixture
def redis_url(redis_server):
    """Return the URL of an empty Redis database."""
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
        yield redis_server.url
        client.flushdb()


@pytest.fixture
def rabbit_url(rabbit_server):
    """Return the URL of a RabbitMQ without queues of earlier tests."""
    import brokers

    brokers.delete_queues(rabbit_server.url)
    yield rabbit_server.url
    brokers.delete_queues(rabbit_server.url)


@pytest.fixture
def broker_url(request):
    """Return the URL of the server of a kind of broker: redis or rabbit."""
    return request.getfixturevalue(f"{request.param}_url")


# Databases


@pytest.fixture
def postgres_url(postgres_server):
    """Return the URL of a new PostgreSQL database, dropped after the test."""
    import databases

    with databases.new_postgres(postgres_server.url) as url:
        yield url


@pytest.fixture
def mysql_url(mysql_server):
    """Return the URL of a new MariaDB or MySQL database, dropped after the test."""
    import databases

    with databases.new_mysql(mysql_server.url) as url:
        yield url


@pytest.fixture
def sqlite_url(request, tmp_path):
    """Return the URL of a SQLite file that does not exist yet."""
    request.config.stash[_BACKENDS]["SQLite"] = f"SQLite {sqlite3.sqlite_version}"
    return f"sqlite:///{tmp_path / 'joblog.db'}"


@pytest.fixture(scope="session")
def _postgres_database(postgres_server):
    import databases

    database = databases.Prepared(databases.Postgres(postgres_server.url))
    yield database
    database.close()


@pytest.fixture(scope="session")
def _mysql_database(mysql_server):
    import databases

    database = databases.Prepared(databases.MySQL(mysql_server.url))
    yield database
    database.close()


@pytest.fixture(scope="session")
def _sqlite_database(tmp_path_factory):
    import databases

    return databases.PreparedFile(tmp_path_factory.mktemp("template"))


@pytest.fixture
def postgres_database(_postgres_database):
    """Return the URL of a PostgreSQL database with the log's tables, empty."""
    return _postgres_database.empty()


@pytest.fixture
def mysql_database(_mysql_database):
    """Return the URL of a MariaDB database with the log's tables, empty."""
    return _mysql_database.empty()


@pytest.fixture
def sqlite_database(_sqlite_database, sqlite_url, tmp_path):
    """Return the URL of a SQLite file with the log's tables, empty."""
    _sqlite_database.copy(tmp_path / "joblog.db")
    return sqlite_url


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def database_url(request):
    """Return the URL of a database with the log's tables, empty, of each kind in turn.

    For a test marked `new_database`, it is new and has no tables.
    """
    return _database(request, request.param)


def _database(request, kind: str) -> str:
    if request.node.get_closest_marker("new_database"):
        return request.getfixturevalue(f"{kind}_url")
    url = request.getfixturevalue(f"{kind}_database")
    request.node.stash.setdefault(_WITH_TABLES, set()).add(url)
    return url


@pytest.fixture
def database_of(request):
    """Return a function that returns `database_url` for a kind of database."""
    return functools.partial(_database, request)


# The log, brokers, workers


@pytest.fixture
def joblog(request, database_url):
    """Return a log with its tables, on each kind of database in turn."""
    log = JobLog(database_url)
    if database_url not in request.node.stash.get(_WITH_TABLES, ()):
        log.create_tables()
    yield log
    log.close()


@pytest.fixture
def batches(joblog):
    """Return the batches that are written, each as a list of events."""
    seen = []
    sections = joblog.core.sections
    write = sections.write

    def note(events):
        answers = write(events)
        seen.append(list(events))
        return answers

    sections.write = note
    return seen


@pytest.fixture
def appear(joblog):
    """Return a function that registers a live worker process, and returns its heartbeat."""
    from dramatiq_joblog.recording.heartbeat import Heartbeat

    def make(*queues, threads=2):
        heartbeat = Heartbeat(joblog.core.tables, timeout=60_000)
        heartbeat.describe(threads, set(queues))
        heartbeat.beat()
        joblog.release()
        return heartbeat

    return make


@pytest.fixture
def job_factory(joblog):
    """Return a function that inserts a job, finished by default."""

    def make(**overrides):
        now = int(time.time() * 1000)
        row = {
            "jid": str(uuid.uuid4()),
            "actor": "work",
            "queue": "default",
            "state": "finished",
            "attempt": 1,
            "enqueued_at": now,
            "started_at": now,
            "finished_at": now,
            "created_at": now,
            "updated_at": now,
            "duration": 0,
            "queue_time": 0,
        }
        created = joblog.Job.create(**row | overrides)
        return joblog.Job.get_by_id(created.id)

    yield make
    joblog.release()


@pytest.fixture
def make_broker(request):
    """Return a function that makes the global broker, with a log at a position in its middleware.

    *middleware* is the list without the log, by default Dramatiq's; other keywords are passed to
    `JobLogMiddleware`.
    """
    made = []

    def make(kind="stub", position="last", *, joblog, middleware=None, **middleware_kwargs):
        stack = [m() for m in default_middleware] if middleware is None else list(middleware)
        places = {
            "first": 0,
            "last": len(stack),
            "before_retries": next((i for i, m in enumerate(stack) if type(m) is Retries), None),
        }
        stack.insert(places[position], JobLogMiddleware(joblog, **middleware_kwargs))
        if kind == "stub":
            broker = StubBroker(middleware=stack)
        else:
            import brokers

            url = request.getfixturevalue(f"{kind}_url")
            namespace = f"test-{uuid.uuid4().hex[:8]}"
            broker = brokers.connect(url, namespace=namespace, middleware=stack)
        made.append(broker)
        # As in a booting worker process: some of Dramatiq's middleware starts here.
        broker.emit_after("process_boot")
        dramatiq.set_broker(broker)
        return broker

    yield make
    for broker in made:
        _disconnect(broker)


def _disconnect(broker) -> None:
    if isinstance(broker, StubBroker):
        broker.close()
    else:
        import brokers

        brokers.disconnect(broker)


@pytest.fixture
def worker():
    """Return a context manager that runs a worker of a broker in this process."""

    @contextlib.contextmanager
    def run(broker, **options):
        if type(broker).__name__ == "RabbitmqBroker":
            import brokers

            brokers.make_queues(broker)
        running = dramatiq.Worker(broker, **{"worker_timeout": 100, "worker_threads": 4} | options)
        running.start()
        try:
            yield running
        finally:
            running.stop(timeout=30_000)

    return run


_WORKER = re.compile(r"\[PID (\d+)\] \[[^]]*\] \[dramatiq\.WorkerProcess")


@dataclass
class WorkerProcess:
    """A real ``dramatiq`` command, with its worker processes and their output."""

    process: subprocess.Popen[bytes] | Command
    path: Path

    @property
    def pid(self) -> int:
        """The process that started the workers."""
        return self.process.pid

    @property
    def output(self) -> str:
        """The output so far."""
        return self.path.read_text(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        """The live worker processes, oldest first."""
        import psutil

        # Found by their output: Dramatiq 1 and multiprocessing start other processes too.
        pids = {int(pid) for pid in _WORKER.findall(self.output)}
        # From Python 3.14 on they are children of a fork server.
        children = psutil.Process(self.pid).children(recursive=True)
        return sorted((c for c in children if c.pid in pids), key=lambda c: c.create_time())


#: The environment of worker processes: their module path, and short poll intervals in
#: milliseconds.
_OF_WORKERS = {
    "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(ROOT)]),
    "dramatiq_worker_timeout": "100",
    # Dramatiq 1 serves metrics by default, and two commands would need the same port.
    "dramatiq_prom_port": "0",
}


@contextlib.contextmanager
def _prepared(kind: str, environment):
    """Yield a launcher of programs from a process that has already imported what they need.

    It is None if that is not possible.
    """
    import prepared
    import servers

    if prepared.why_not(kind):
        yield None
        return
    made = prepared.Prepared(servers.launch, kind, environment)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def prepared_workers():
    """Return the launcher of ``python -m dramatiq`` and of scripts, or None."""
    with _prepared("dramatiq", os.environ | _OF_WORKERS) as prepared:
        yield prepared


@pytest.fixture(scope="session")
def prepared_python():
    """Return the launcher of ``python`` with the dependencies imported, or None."""
    with _prepared("python", os.environ) as prepared:
        yield prepared


@pytest.fixture(scope="session")
def prepared_commands():
    """Return the launcher of the command line, or None."""
    with _prepared("dramatiq_joblog", os.environ | {"PYTHONPATH": ""}) as prepared:
        yield prepared


@pytest.fixture
def run_worker_process(request, tmp_path, eventually, prepared_workers):
    """Return a context manager that runs ``python -m dramatiq`` on a module.

    Modules are found in `tests/support` and in the project's folder.  *gevent* uses the command
    ``dramatiq-gevent``.  *env* is added to the environment and *args* to the command.  It is
    stopped with SIGTERM at the end; the test fails if it printed anything CRITICAL, except lines
    that contain *expects_critical*.  A *fresh* process has no modules imported in advance.
    """

    @contextlib.contextmanager
    def run(
        module,
        *,
        processes=1,
        threads=4,
        env=None,
        args=(),
        expects_critical=None,
        gevent=False,
        fresh=False,
    ):
        path = tmp_path / f"worker-{uuid.uuid4().hex[:8]}.log"
        counts = ["--processes", str(processes), "--threads", str(threads)]
        script = [str(Path(sys.executable).with_name("dramatiq-gevent"))]
        command = script if gevent else ["-m", "dramatiq"]
        arguments = [module, *counts, *args]
        environment = os.environ | _OF_WORKERS | (env or {})
        launcher = None if gevent or fresh else prepared_workers
        with path.open("wb") as log:
            process = _start_python(
                launcher, [*command, *arguments], folder=ROOT, environment=environment, log=log
            )
        running = WorkerProcess(process, path)

        def ready():
            if process.poll() is not None:
                pytest.fail(f"dramatiq {module} ended at once:\n{running.output}", pytrace=False)
            return running.output.count("Worker process is ready for action.") >= processes

        try:
            eventually(ready, timeout=60)
            yield running
            _terminate(process)
        finally:
            # Also processes that a killed parent left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            request.node.add_report_section("call", f"dramatiq {module}", running.output)
        faults = [
            line
            for line in running.output.splitlines()
            if ("CRITICAL" in line or "Unexpected failure" in line)
            and not (expects_critical and expects_critical in line)
        ]
        if faults:
            pytest.fail("the worker process reported:\n" + "\n".join(faults), pytrace=False)

    return run


@pytest.fixture
def run_script(prepared_workers):
    """Return a function that runs a script of `tests/support` in its own process."""

    def run(name, *arguments, **variables):
        return _run_python(
            prepared_workers,
            [SUPPORT / name, *arguments],
            folder=ROOT,
            environment=os.environ | _OF_WORKERS | variables,
        )

    return run


@pytest.fixture
def run_python(prepared_python, tmp_path):
    """Return a function that runs ``python`` with a script, ``-m`` or ``-c`` in its own process.

    It runs in the test's folder, or in the one that is named, with an *environment* instead of the
    tests' own.  Options of the interpreter itself cannot be given.
    """

    def run(*arguments, folder=tmp_path, environment=os.environ, timeout=60):
        return _run_python(
            prepared_python, arguments, folder=folder, environment=environment, timeout=timeout
        )

    return run


@pytest.fixture
def start_python(prepared_python, tmp_path):
    """Return a function that starts ``python`` as `run_python` does, and returns the process.

    Its output goes to *log*, and it ends with the tests' own process.
    """

    def start(*arguments, log, folder=tmp_path, environment=os.environ):
        return _start_python(
            prepared_python, arguments, folder=folder, environment=environment, log=log
        )

    return start


def _start_python(launcher, arguments, *, folder, environment, log):
    import servers

    if launcher is not None:
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing, log, log]
            return launcher.start(arguments, folder=folder, environment=environment, files=files)
    return servers.launch(
        [sys.executable, *map(str, arguments)],
        on_parent_death=signal.SIGTERM,
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _run_python(launcher, arguments, *, folder, environment, timeout=60):
    if launcher is not None:
        return launcher.run(arguments, folder=folder, environment=environment, timeout=timeout)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _terminate(process: subprocess.Popen[bytes] | Command) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("the worker process did not stop within 30 s of SIGTERM", pytrace=False)


@pytest.fixture(scope="session")
def eventually():
    """Return a function that polls for an effect of another thread or process.

    It returns the first true result of *predicate*, and fails after *timeout* seconds.
    """

    def wait(predicate, timeout=30):
        deadline = time.monotonic() + timeout
        while not (value := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"{predicate} was still {value!r} after {timeout} s")
            time.sleep(0.02)
        return value

    return wait


# The command line


@pytest.fixture
def ask(database_url):
    """Return a function that runs the command in this process, with its output as in a pipe."""
    import commands

    return functools.partial(commands.ask, database_url)


@pytest.fixture
def asked():
    """Return a context manager that lists the SQL statements of its own thread."""

    @contextlib.contextmanager
    def listing():
        thread, texts = threading.get_ident(), []
        with count_queries() as counter:
            yield texts
        mine = [record.msg[0] for record in counter.get_queries() if record.thread == thread]
        # Before peewee 4.5, the beginning and end of transactions are logged too.
        texts += [text for text in mine if not text.startswith(("BEGIN", "COMMIT"))]

    return listing


@pytest.fixture
def cli(tmp_path, prepared_commands):
    """Return a function that runs the command in an empty folder, in its own process."""
    import commands

    return functools.partial(commands.run, prepared_commands, tmp_path)


@pytest.fixture
def terminal(tmp_path, prepared_commands):
    """Return a function that runs the command on a terminal, and returns its screen output."""
    import commands

    return functools.partial(commands.on_terminal, prepared_commands, tmp_path)


# The summary


def pytest_addoption(parser):
    """Add the option that runs the whole suite."""
    parser.addoption(
        "--all", action="store_true", help="run the whole suite, and not its first tier alone"
    )
    parser.addoption(
        "--every-database",
        action="store_true",
        help="with --all, run each test on SQLite, PostgreSQL and MariaDB, and not on two of them",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Prepare the record of backends, and enable Ctrl-C for started programs."""
    config.stash[_BACKENDS] = {}
    config.stash[_COLLECTED] = {}
    tiers.choose(whole=config.getoption("--all"))
    _begin_apart(config)
    _trust_one_authority()
    # A shell's background jobs ignore SIGINT, and so would their child processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_threads_exit()


def _begin_apart(config):
    """Let each pytest worker begin to collect with other files.

    The first one that rewrites the assertions of a file leaves the result to the others: in a fresh
    clone this is most of the work of collecting.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None or [Path(argument).resolve() for argument in config.args] != [TESTS]:
        return
    files = sorted(map(str, TESTS.rglob("test_*.py")))
    begin = len(files) * _pytest_worker() // worker["workercount"]
    config.args = files[begin:] + files[:begin]


def _trust_one_authority():
    """Make TLS trust a single dummy authority instead of those of the system.

    Otherwise pymysql would read some hundred certificates for each connection, in 50 ms of CPU.
    """
    if not named_servers.ANY:
        # Named servers may use TLS.
        os.environ["SSL_CERT_FILE"] = str(SUPPORT / "authority.pem")


def _let_threads_exit():
    """Allow a thread to end with SystemExit, like Python and unlike pytest."""
    report = threading.excepthook

    def hook(args):
        if args.exc_type is not SystemExit:
            report(args)

    threading.excepthook = hook


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return six pytest workers for two cores: tests spend half of the time waiting.

    Named unit tests finish before workers would have started.
    """
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if named and all(path.is_relative_to(UNIT) for path in named):
        return 0
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(3 * cores, 16)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Pass the address of the shared servers to a pytest-xdist worker."""
    node.workerinput["servers"] = _servers(node.config).listen()


def pytest_unconfigure(config):
    """Stop the shared servers that were started here."""
    if _SERVERS in config.stash:
        config.stash[_SERVERS].stop()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Parametrize a test for SQLite alone if the run's tier has only that."""
    tiers.narrow(metafunc)


def pytest_collection_modifyitems(config, items):
    """Refuse a test without a docstring or with an unstable name; select those of the tier."""
    for item in items:
        if isinstance(item, pytest.Function) and not item.function.__doc__:
            raise pytest.UsageError(f"{item.nodeid} has no docstring: state its rule in a sentence")
        if " at 0x" in item.nodeid:
            # pytest-xdist would collect different tests in each worker.
            raise pytest.UsageError(f"{item.nodeid} has an address in its name: give it an id")
    # In the same order in every pytest worker, whatever it began with.
    items.sort(key=_place)
    first, others = tiers.split(items)
    for item in items:
        config.stash[_COLLECTED].setdefault(item.path.name, set())
    for item in first:
        config.stash[_COLLECTED][item.path.name].add(item.originalname)
    if config.getoption("--all"):
        others = []
        if not config.getoption("--every-database"):
            first, others = tiers.alternate(items)
    if others:
        items[:] = first
        config.hook.pytest_deselected(items=others)
    if hasattr(config, "workerinput") and not tiers.whole():
        # Run the longest tests first, so that no pytest worker is left with them at the end.  The
        # complete suite has too many to run them at the same time.
        items.sort(key=lambda item: item.get_closest_marker("process") is None)


def _place(item):
    """Return where an item comes in the suite: in an order of files that mixes the folders.

    Tests of processes wait for most of their time and others compute: together they use a machine
    fully.  Those in a browser come first, so that one pytest worker has them all: at the end they
    would be divided, and each worker would start a browser for each file.
    """
    path = os.path.relpath(item.path, ROOT)
    in_browser = hasattr(getattr(item, "module", None), "chromium")
    return not in_browser, hashlib.sha256(path.encode()).digest(), path


def pytest_collection_finish():
    """Exclude the tests and their imports from garbage collection, because they stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def first_tier(request):
    """Return the names of the collected tests of the first tier, by file."""
    return request.config.stash[_COLLECTED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Record a test that passed; make a report safe for pytest-xdist to transfer.

    Tests with hostile text may have logged or failed with anything, and what is not UTF-8 would
    end the run instead of the test.
    """
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    report.sections = [(name, _utf8(text)) for name, text in report.sections]
    if report.failed and (told := str(report.longrepr)) != (safe := _utf8(told)):
        report.longrepr = safe
    return report


def _utf8(text):
    return text.encode("utf-8", "backslashreplace").decode()


def pytest_sessionfinish(session):
    """Pass a pytest-xdist worker's backends to the controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["backends"] = session.config.stash[_BACKENDS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Receive a pytest-xdist worker's backends."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[_BACKENDS].update(output.get("backends", {}))


def pytest_terminal_summary(terminalreporter, config):
    """Report which backends ran, which did not, and which tests had no real Redis."""
    backends = config.stash[_BACKENDS]
    unasked = [
        name for name in ("PostgreSQL", "RabbitMQ", "Redis", "SQLite") if name not in backends
    ]
    facts = [backends[name] for name in sorted(backends)]
    facts += [f"no {name}: no test of this run asked for it" for name in unasked]
    terminalreporter.section("backends")
    terminalreporter.write_line(f"Python {platform.python_version()}; " + "; ".join(facts))
    _say_what_needs_a_real_redis(terminalreporter)
    if not config.getoption("--all"):
        terminalreporter.write_line(
            "The first tier of the suite; --all runs it all (make test-all)."
        )


def _say_what_needs_a_real_redis(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    import servers

    without = {r.nodeid.partition("[")[0] for r in skipped if servers.NOT_REAL in str(r.longrepr)}
    if without:
        terminalreporter.write_line(f"{servers.NOT_REAL}, so these were skipped:")
        for name in sorted(without):
            terminalreporter.write_line(f"  {name}")


@pytest.fixture
def victims(database_url, redis_url, run_worker_process, tmp_path):
    """Return functions to run a ``victim_worker`` and to send it jobs, and its broker."""
    import brokers

    environment = {
        "VICTIM_BROKER": redis_url,
        "VICTIM_DATABASE": database_url,
        "VICTIM_FOLDER": str(tmp_path),
    }
    broker = brokers.connect(redis_url, namespace="victim")
    broker.declare_queue("default")

    def send(actor):
        message = dramatiq.Message("default", actor, (), {}, {})
        broker.enqueue(message)
        return message.message_id

    def run(**options):
        return run_worker_process("victim_worker", env=environment, **options)

    yield run, send, broker
    brokers.disconnect(broker)
