"""``export``: jobs as JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dramatiq_joblog.reading.display import escaped_json, spreadsheet_cell

from .app import NOTHING, Refusal, Session, command
from .confirm import progress
from .filters import filtered, select
from .style import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.schema.query import JobQuery

#: How many jobs are read at once.
_BATCH = 1_000


@command(
    "export",
    "Write jobs as JSON lines or CSV.",
    examples=[
        ("export state:dead since:7d > dead.jsonl", "JSON, one job per line"),
        ("export --format csv --output jobs.csv type:import", "a CSV file for a spreadsheet"),
        ("export --failures state:dead | jq .failures[].traceback", "with all failed runs"),
    ],
)
@filtered
@click.option("--failures", is_flag=True, help="Include each job's failed runs; JSON lines only.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="JSON lines, or CSV with a header.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; by default standard output.",
)
def export(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    failures: bool,
    form: str,
    output: Path | None,
) -> None:
    """Write jobs with all their fields, newest first, without a limit.

    WORDs are as for list. Times are in ISO 8601 and UTC, durations in milliseconds. Redacted
    values stay redacted.
    """
    joblog = session.joblog
    if failures and form == "csv":
        raise Refusal("--failures does not fit into CSV; use --format jsonl")
    query = select(session, words, filters)
    with ExitStack() as stack:
        try:
            file = sys.stdout
            if output is not None:
                file = stack.enter_context(output.open("w", encoding="utf-8", newline=""))
        except OSError as e:
            raise Refusal(f"{safe(output)} cannot be written: {e.strerror}") from e
        write = _csv(joblog, file) if form == "csv" else _json_lines(file, failures=failures)
        count = 0
        update = _shown(stack, joblog, query, output)
        for count, job in enumerate(_all(query), 1):
            write(job)
            if count % 100 == 0:
                update(count)
    if not count:
        raise Refusal("no job matches", NOTHING)


def _shown(
    stack: ExitStack, joblog: JobLog, query: JobQuery, output: Path | None
) -> Callable[[int], None]:
    """Show the progress, unless the jobs themselves go to the terminal."""
    if not sys.stderr.isatty() or (output is None and sys.stdout.isatty()):
        return lambda _: None
    counts = joblog.counts(query, cap=100_000).values()
    total = None if any(count.capped for count in counts) else sum(counts)
    update = stack.enter_context(progress("exporting", total))
    return lambda done: update(done, total)


def _all(query: JobQuery) -> Iterator[Any]:
    page = query.page(limit=_BATCH)
    while True:
        yield from page.jobs
        if page.older is None:
            return
        page = query.page(limit=_BATCH, before=page.older)


def _json_lines(file: TextIO, *, failures: bool) -> Callable[[Any], None]:
    def write(job: Any) -> None:
        row = job.as_dict()
        if failures:
            row["failures"] = [failure.as_dict() for failure in job.failures]
        file.write(escaped_json(json.dumps(row, ensure_ascii=False)) + "\n")

    return write


def _csv(joblog: JobLog, file: TextIO) -> Callable[[Any], None]:
    writer = csv.writer(file)
    writer.writerow(joblog.Job().as_dict())

    def write(job: Any) -> None:
        writer.writerow(
            escaped_json(json.dumps(value, ensure_ascii=False))
            if isinstance(value, (dict, list))
            else spreadsheet_cell(value)
            for value in job.as_dict().values()
        )

    return write
