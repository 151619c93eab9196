"""A PgBouncer in front of a PostgreSQL, in transaction mode."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import servers


@contextlib.contextmanager
def running(url: str, *, connections: int = 1):
    """Yield the URL of a PgBouncer with *connections* connections to the database of *url*."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin"
    program = shutil.which("pgbouncer", path=path)
    if program is None:
        raise servers.ServerMissingError("there is no PgBouncer: apt install pgbouncer")
    parts, port = urlsplit(url), servers.free_port()
    name, user = parts.path.lstrip("/"), parts.username or "postgres"
    password = unquote(parts.password or "")
    folder = Path(tempfile.mkdtemp(prefix="joblog-pb-"))
    target = f"host={parts.hostname} port={parts.port or 5432} dbname={name} user={user}"
    if password:
        target += f" password={password}"
    (folder / "users.txt").write_text(f'"{user}" "{password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users.txt\npool_mode = transaction\n"
        f"default_pool_size = {connections}\n"
    )
    runs_as = servers._unprivileged_user()
    if any(runs_as):
        os.chown(folder, *runs_as)
    try:
        process = servers._start(
            [program, str(folder / "pgbouncer.ini")],
            folder,
            on_parent_death=signal.SIGKILL,
            user=runs_as,
        )
        pooled = f"postgresql://{user}@127.0.0.1:{port}/{name}"
        server = servers.Server("PgBouncer", program, pooled, process, folder)
        servers._first_answer(server, lambda: _ask(pooled), psycopg.Error)
        yield pooled
        servers._end(process, signal.SIGINT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask(url: str) -> str:
    with psycopg.connect(url, prepare_threshold=None) as connection:
        return str(connection.execute("SELECT version()").fetchone())
