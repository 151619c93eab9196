"""An actor's parameters are known, whatever its form, or a warning is logged."""

from __future__ import annotations

import functools

import dramatiq
import pytest

from dramatiq_joblog import ConfigurationError, JobLog
from dramatiq_joblog.payload.parameters import parameters_of


def login(user, password):
    pass


def plain(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def reporting(function, report=print):
    """Wrap two functions, with the name of one."""

    def wrapper(*args, **kwargs):
        report("called")
        return function(*args, **kwargs)

    wrapper.__name__ = function.__name__
    return wrapper


class Wrapper:
    """A decorator that is a class."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Holder:
    """Has a method."""

    def login(self, user, password):
        pass


@pytest.mark.parametrize(
    ("function", "guessed"),
    [
        (login, False),
        (functools.wraps(login)(plain(login)), False),
        (functools.partial(login), False),
        (Holder().login, False),
        (plain(login), True),
        (plain(plain(plain(login))), True),
        (plain(Holder().login), True),
        (reporting(login), True),
        (Wrapper(login), True),
        (plain(Wrapper(login)), True),
    ],
)
def test_names(function, guessed):
    """The names are those of the innermost function."""
    parameters = parameters_of(function)

    assert ("user", "password") == parameters.positional
    assert guessed == parameters.guessed
    assert parameters.known


@pytest.mark.parametrize("function", [plain(print), lambda *args, **kwargs: None, dict.get])
def test_names_that_nobody_knows(function):
    """Without parameter names, a key with a parameter is refused."""
    assert not parameters_of(function).accepts("user")


def test_any_number_of_the_same(log):
    """A function that takes any number of arguments is not considered a wrapper."""
    parameters = parameters_of(lambda *tokens: None)

    assert ("tokens",) == parameters.positional
    assert not parameters.guessed


@pytest.fixture
def log(sqlite_database):
    """Return a log."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def by_class(parent=dramatiq.GenericActor, **options):
    """Declare an actor that is a class."""

    class Import(parent):
        Meta = type("Meta", (), options)

        def perform(self, user, password="none"):
            pass

    return Import


def test_a_class_is_known_by_perform(log, make_broker):
    """The user, a key and the secrets of a class-based actor are found by ``perform``."""
    make_broker(joblog=log)
    actor = by_class(job_user="user", exclusive="import:{user}")

    for message in (actor.send("ada", "hunter2"), actor.send(user="eve", password="hunter2")):
        job = log.get(message.message_id)
        assert job.user_id in ("ada", "eve")
        assert f"import:{job.user_id}" == job.section
        assert "hunter2" not in repr(job.__data__)


@pytest.mark.parametrize(
    "options", [{"job_user": "nobody"}, {"exclusive": "x:{nobody}"}, {"unique": "x:{nobody}"}]
)
@pytest.mark.parametrize("declare", [by_class, lambda **o: dramatiq.actor(**o)(plain(print))])
def test_what_cannot_be_resolved_is_refused(log, make_broker, declare, options):
    """A name that is no parameter is refused when a class or a wrapper is declared."""
    make_broker(joblog=log)

    with pytest.raises(ConfigurationError, match="nobody"):
        declare(**options)


def test_only_keywords_may_be_anything(log, make_broker):
    """A function with named parameters and ``**kwargs`` may use any keyword in a key."""
    make_broker(joblog=log)

    @dramatiq.actor(exclusive="shop:{shop}", job_user="owner")
    def sync(first, **more):
        pass

    job = log.get(sync.send(1, shop="a", owner="ada").message_id)

    assert ("shop:a", "ada") == (job.section, job.user_id)


def test_a_keyword_is_not_looked_for_among_the_others(log, make_broker):
    """A user in a keyword-only parameter is not read from a positional argument."""
    make_broker(joblog=log)

    @dramatiq.actor(job_user="user")
    def sync(*shops, user="nobody"):
        pass

    assert "nobody" == log.get(sync.send(1, 2).message_id).user_id


def test_a_wrapper_is_named_once(log, make_broker, caplog):
    """A decorator that hides the parameters is named when the actor is declared, and only then."""
    make_broker(joblog=log)

    actor = dramatiq.actor(actor_name="login")(plain(login))
    unknown = dramatiq.actor(actor_name="unknown")(plain(max))
    actor.send("ada", "hunter2")
    actor.send("ada", "hunter2")
    unknown.send("ada")

    [first, second] = [r.getMessage() for r in caplog.records if "functools.wraps" in r.message]
    assert "'login'" in first
    assert "(user, password), are taken" in first
    assert "'unknown'" in second
    assert "is kept as it is" in second


def test_two_brokers_with_an_actor_of_one_name(log, make_broker):
    """The names are those of the broker's own actor."""
    for parameters in ("user, password", "password, user"):
        broker = make_broker(joblog=log)
        function = eval(f"lambda {parameters}: None")
        actor = dramatiq.actor(actor_name="login", broker=broker)(function)
        values = ("ada", "hunter2") if parameters.startswith("user") else ("hunter2", "ada")
        job = log.get(actor.send(*values).message_id)
        assert "ada" in job.args
        assert "hunter2" not in job.args
