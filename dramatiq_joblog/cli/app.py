"""The parts that all commands share: the log, error messages, help."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from dramatiq_joblog.payload.secret_texts import scrub
from dramatiq_joblog.reading.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dramatiq_joblog import JobLog

    from .table import Column, Screen

PROGRAM = "dramatiq-joblog"

#: Exit codes other than 0.
NOTHING, USAGE, AWAY, INTERRUPTED = 1, 2, 3, 130

_EXIT_CODES = """\
0    done
1    nothing was found, something could not be done, or needs attention
2    the command line cannot be understood, or was not confirmed
3    the log's database, or the application's broker, is unavailable
130  ended by Ctrl-C"""

#: Replaces the hyphen before a word of a search, because no option begins with this sign.
MINUS = "\N{MINUS SIGN}"
_NEGATED = re.compile(rf"^-(?=(?:{'|'.join(KEYS)}):|args\.)")
#: A negative number, which is not an option either.
_BELOW_0 = re.compile(r"^-(?=\d)")

_EXAMPLES = f"""\
{PROGRAM} --database sqlite:///jobs.db list state:dead since:1d
{PROGRAM} --app shop.jobs:joblog requeue 4e1b9c70"""


class Refusal(click.ClickException):
    """Raised to end the command with one sentence and an exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        # Click reads it from the instance, but declares it on the class.
        self.__dict__["exit_code"] = code

    def show(self, file: Any = None) -> None:
        """Write the sentence to standard error."""
        click.echo(f"{PROGRAM}: {self.message}", err=True)


class Session:
    """One call of the program: the log that it uses, and the form of its output.

    Parameters:
      opened: Returns the log, if the program has a fixed one; None if options name it.
      program: The name of the program, for commands in its texts.
    """

    def __init__(self, opened: Callable[[], JobLog] | None = None, program: str = PROGRAM) -> None:
        self._options: dict[str, Any] = {}
        self._opened = opened
        self._program = program

    def remember(self, option: str, value: Any) -> None:
        """Store an option that may come before or after the command."""
        self._options[option] = value

    @property
    def app(self) -> str | None:
        """The application's log, as ``module:name``."""
        return self._options.get("app")

    @property
    def database(self) -> str | None:
        """URL of the log's database."""
        return self._options.get("database")

    @property
    def json(self) -> bool:
        """Whether to print JSON."""
        return bool(self._options.get("json"))

    @functools.cached_property
    def screen(self) -> Screen:
        """Standard output."""
        screen: Screen = importlib.import_module(f"{__package__}.table").Screen()
        return screen

    def show(self, rows: Sequence[Any], columns: Sequence[Column[Any]], *, nothing: str) -> None:
        """Show rows as a table, or as JSON.

        Raises:
          Refusal: If there are none, with the text *nothing*.
        """
        if self.json:
            self.screen.json([row.as_dict() for row in rows])
        else:
            self.screen.table(columns, rows)
        if not rows:
            raise Refusal(nothing, NOTHING)

    def remark(self, text: str) -> None:
        """Write a line that is no data: beside values and JSON, on standard error."""
        if self.json or not self.screen.live:
            click.echo(text, err=True)
        else:
            self.screen.remark(text)

    @functools.cached_property
    def joblog(self) -> JobLog:
        """The log, whose database must exist.

        Raises:
          Refusal: If none is named, or it cannot be used.
        """
        joblog = self.new_joblog
        file = _opening().file_of(joblog)
        if file is not None and not file.exists():
            raise Refusal(
                f"there is no file {str(file)!r}; to make a new log there: {self.cure('migrate')}",
                AWAY,
            )
        return joblog

    @functools.cached_property
    def new_joblog(self) -> JobLog:
        """The log, whose database need not have any tables yet.

        Raises:
          Refusal: If none is named, or it cannot be used.
        """
        joblog = self._named()
        click.get_current_context().call_on_close(joblog.close)
        return joblog

    def _named(self) -> JobLog:
        if self.app and self.database:
            raise Refusal("--app and --database name two logs; give one of them")
        if self.app:
            named: JobLog = _opening().log_of(self.app)
            return named
        if self._opened is not None and not self.database:
            return self._opened()
        url = self.database or os.environ.get("JOBLOG_DATABASE")
        if not url:
            raise Refusal(
                "which log? Give --database URL or --app module:joblog, or set JOBLOG_DATABASE"
            )
        opened: JobLog = _opening().open_log(url)
        return opened

    def cure(self, command: str) -> str:
        """Return a command for the same log, as the user would type it."""
        if self.app:
            return f"{self._program} --app {self.app} {command}"
        if self.database:
            return f"{self._program} --database {scrub(self.database)} {command}"
        return f"{self._program} {command}"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Raise errors of the log in the block as a :class:`Refusal`."""
        try:
            yield
        except (click.ClickException, click.exceptions.Abort, click.exceptions.Exit):
            raise
        except Exception as e:
            raise self.refusal(e) from e

    def refusal(self, error: Exception) -> Refusal:
        """Return the message for an error of the log or of its database.

        Raises:
          Exception: The error itself, if it is neither.
        """
        opened = vars(self).get("new_joblog")
        place = "" if opened is None else f"{opened.name} "
        refusal: Refusal = _opening().refusal_of(error, place, self.cure("migrate"))
        return refusal


def _opening() -> Any:
    """Return the module that opens logs; its imports are slow, and help does not need them."""
    return importlib.import_module(f"{__package__}.opening")


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        context.ensure_object(Session).remember(str(parameter.name), value)


def _common_options() -> list[click.Option]:
    """Return the options that may come before or after a command."""
    return [
        click.Option(
            ["--app"],
            metavar="MODULE:NAME",
            expose_value=False,
            callback=_remember,
            help="The application's log, such as shop.jobs:joblog; imported with the "
            "current folder on the path.",
        ),
        click.Option(
            ["--database"],
            metavar="URL",
            expose_value=False,
            callback=_remember,
            help="The log's database, such as sqlite:///jobs.db or "
            "postgresql://user@host/name; by default JOBLOG_DATABASE.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Print JSON.",
        ),
    ]


class Command(click.Command):
    """A command with the common options, and with examples.

    Parameters:
      examples: Pairs of arguments and what they do.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += _common_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; ``-key:value`` and ``-1`` are arguments, not options."""
        valued = [p for p in self.params if isinstance(p, click.Option) and not p.is_flag]
        names = {name for option in valued for name in option.opts}
        read = [
            # The next argument is the option's value.
            arg if before in names else _BELOW_0.sub(MINUS, _NEGATED.sub(MINUS, arg))
            for before, arg in zip(["", *args], args, strict=False)
        ]
        return super().parse_args(ctx, read)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return completions of an option, or of a search word that begins with a hyphen."""
        if _NEGATED.match(incomplete):
            arguments = [p for p in self.params if isinstance(p, click.Argument)]
            return [item for p in arguments for item in p.shell_complete(ctx, incomplete)]
        return super().shell_complete(ctx, incomplete)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for arguments, effect in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}# {effect}\n")
                formatter.write(f"{'':{formatter.current_indent}}{PROGRAM} {arguments}\n")


class Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is needed.

    Parameters:
      known: For each name its module in this package, the command in it, and what it does.
    """

    def __init__(self, known: Mapping[str, tuple[str, str, str]]) -> None:
        self._known = known
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        """Return a command, importing it if necessary."""
        if name not in self._loaded:
            module, attribute, _ = self._known[name]
            self._loaded[name] = getattr(
                importlib.import_module(f"{__package__}.{module}"), attribute
            )
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        """Add a command."""
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        """Remove an added command."""
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(dict.fromkeys([*self._known, *self._loaded]))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(list(iter(self)))

    def effect(self, name: str) -> str:
        """Return what a command does, without importing it."""
        if name in self._known:
            return self._known[name][2]
        return self._loaded[name].get_short_help_str()


class Program(click.Group):
    """All commands; their errors are shown as one sentence."""

    commands: Commands

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as e:
            raise Refusal(_sentence(e)) from e

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the named command.

        Raises:
          Refusal: If there is none of that name.
        """
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {PROGRAM} --help"
            raise Refusal(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        session = ctx.ensure_object(Session)
        try:
            with session.refusing():
                return super().invoke(ctx)
        except click.UsageError as e:
            raise Refusal(_sentence(e)) from e
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, without importing any."""
        rows = [(name, self.commands.effect(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands with this beginning, and completions of an option."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=self.commands.effect(name)) for name in names]
        # Not Group's method, which imports every command for its help.
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples and the exit codes."""
        with formatter.section("Examples"):
            for text in _EXAMPLES.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{text}\n")
        with formatter.section("Exit codes"):
            for text in _EXIT_CODES.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{text}\n")


def _sentence(error: click.UsageError) -> str:
    text = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx else PROGRAM
    return f"{text[:1].lower()}{text[1:]}; see {command} --help"


#: The option for the number of rows of a list.
at_most = click.option(
    "--limit",
    "-n",
    default=50,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Show at most this many.",
)


def command(
    name: str, effect: str, *, examples: Sequence[tuple[str, str]]
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command; its first argument is the :class:`Session`.

    Parameters:
      name: The name of the command.
      effect: What it does, for the list of all commands.
      examples: Pairs of arguments and what they do.
    """

    def make(function: Callable[..., Any]) -> click.Command:
        made: click.Command = click.command(
            name, cls=Command, examples=examples, short_help=effect
        )(click.make_pass_decorator(Session, ensure=True)(function))
        return made

    return make
