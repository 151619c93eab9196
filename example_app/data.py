"""The application's own data: users, price feeds, a ledger; and what its jobs say of themselves.

The prices are real: monthly ones of five stocks from 2000 to 2010, from the ``vega_datasets``
package.  What is broken in them is broken here, on purpose.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from peewee import (
    AutoField,
    BooleanField,
    CharField,
    FloatField,
    ForeignKeyField,
    IntegerField,
    Model,
    SqliteDatabase,
    TextField,
)
from stdnum import iban

#: Where the example keeps its files.
FOLDER = Path(os.environ.get("EXAMPLE_FOLDER", ".demo"))

SYMBOLS = ("AAPL", "AMZN", "GOOG", "IBM", "MSFT")
NAMES = (
    *("Ada", "Boris", "Chiara", "Dmitri", "Emeka", "Fatima"),
    *("Goran", "Hana", "Ines", "Jun", "Kofi", "Lena"),
)

database = SqliteDatabase(
    str(FOLDER / "shop.db"),
    pragmas={"journal_mode": "wal", "busy_timeout": 10_000, "foreign_keys": 1},
)


class Table(Model):
    """A table of the application."""

    id = AutoField()

    class Meta:
        database = database


class User(Table):
    """Someone whose portfolio is looked after."""

    name = CharField()
    iban = CharField()
    closed = BooleanField(default=False)


class Feed(Table):
    """A delivery of one stock's prices to one user, as the supplier sent it: CSV."""

    user = ForeignKeyField(User, backref="feeds")
    symbol = CharField()
    text = TextField()
    #: What the supplier sends when someone complains; None if nobody answers there.
    corrected = TextField(null=True)


class Price(Table):
    """An imported price."""

    user = ForeignKeyField(User, backref="prices")
    symbol = CharField()
    date = CharField()
    price = CharField()

    class Meta:
        indexes = ((("user", "symbol", "date"), True),)


class Trade(Table):
    """A line of the ledger."""

    user = ForeignKeyField(User, backref="trades")
    symbol = CharField()
    quantity = IntegerField()
    price = CharField()
    #: Whether the clerk has booked it; one who forgot does so when someone complains.
    booked = BooleanField(default=True)
    forgotten = BooleanField(default=False)


class Position(Table):
    """What a user is said to hold."""

    user = ForeignKeyField(User, backref="positions")
    symbol = CharField()
    quantity = IntegerField()
    cost = CharField()


class Run(Table):
    """One run of a job, recorded by the job itself, without the log."""

    jid = CharField(index=True)
    attempt = IntegerField()
    user_id = IntegerField(null=True)
    finance = BooleanField()
    began = FloatField()
    ended = FloatField(null=True)
    #: ``finished``, ``stepped aside``, ``skipped``, or the class of the error.
    outcome = CharField(null=True)


TABLES = (User, Feed, Price, Trade, Position, Run)


def stocks() -> dict[str, list[tuple[str, str]]]:
    """Return the dates and prices of each stock, as the data package ships them."""
    spec = importlib.util.find_spec("vega_datasets")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'vega_datasets'", name="vega_datasets")
    path = Path(spec.submodule_search_locations[0]) / "_data" / "stocks.csv"
    series: dict[str, list[tuple[str, str]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            series.setdefault(row["symbol"], []).append((row["date"], row["price"]))
    return series


def seed() -> None:
    """Create the tables again, with everyone's feeds, trades and positions."""
    with database.connection_context(), database.atomic():
        database.drop_tables(TABLES)
        database.create_tables(TABLES)
        series = stocks()
        for number, name in enumerate(NAMES):
            _seed_user(number, name, series)


def _seed_user(number: int, name: str, series: dict[str, list[tuple[str, str]]]) -> None:
    account = f"{100 + number:08d}{7 * number:010d}"
    good = "DE" + iban.calc_check_digits(f"DE00{account}") + account
    # Every fourth was copied with two digits swapped.
    user = User.create(
        name=name,
        iban=good[:-1] + str((int(good[-1]) + 1) % 10) if number % 4 == 3 else good,
        closed=number == 6,
    )
    for offset in range(2):
        symbol = SYMBOLS[(number + offset) % len(SYMBOLS)]
        rows = series[symbol]
        text = _csv(rows)
        broken = _csv([*rows[:40], (rows[40][0], "n/a"), *rows[41:]])
        if offset == 0 and number % 6 == 1:
            Feed.create(user=user, symbol=symbol, text=broken, corrected=text)
        elif offset == 0 and number % 6 == 4:
            Feed.create(user=user, symbol=symbol, text=broken)
        else:
            Feed.create(user=user, symbol=symbol, text=text)
        _seed_trades(user, number, symbol, rows)


def _seed_trades(user: User, number: int, symbol: str, rows: list[tuple[str, str]]) -> None:
    quantity, cost = 0, Decimal(0)
    for month in range(number, len(rows), 12):
        price = rows[month][1]
        amount = 10 + month % 7
        quantity += amount
        cost += amount * Decimal(price)
        Trade.create(user=user, symbol=symbol, quantity=amount, price=price)
    if number % 6 == 2:
        # The last trade was not booked yet.
        trade = Trade.select().where(Trade.user == user).order_by(Trade.id.desc()).get()
        trade.booked, trade.forgotten = False, True
        trade.save()
    if number % 6 == 5:
        cost += Decimal("0.01")
    Position.create(user=user, symbol=symbol, quantity=quantity, cost=str(cost))


def _csv(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{date},{price}" for date, price in rows)


def begin_run(jid: str, attempt: int, user_id: int | None, *, finance: bool) -> Any:
    """Note that a run begins; return its row."""
    with database.connection_context():
        return Run.create(
            jid=jid, attempt=attempt, user_id=user_id, finance=finance, began=time.time()
        )


def end_run(run: Any, outcome: str) -> None:
    """Note how a run ended."""
    with database.connection_context():
        Run.update(ended=time.time(), outcome=outcome).where(Run.id == run.id).execute()
