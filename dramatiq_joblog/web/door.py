"""Who is let in by a key, or by a name and a password; and for how long."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from itsdangerous import BadData, URLSafeTimedSerializer

if TYPE_CHECKING:
    from starlette.requests import Request

#: Seconds that a sign-in lasts.
SESSION_FOR = 12 * 3600
#: One address may be wrong so often within :data:`WRONG_WITHIN` seconds.
WRONG_AT_MOST, WRONG_WITHIN = 10, 60.0
#: Seconds that an answer is held back for each wrong try of anyone in that time, and at most.
SLOWER, SLOWEST = 0.02, 1.0
#: As many addresses are remembered at most.
ADDRESSES = 10_000


class Door:
    """A name and a password, or a key alone; and the sessions of those who gave them.

    Sessions are signed by a key that is made of the secret: all processes that know the secret
    know each other's sessions, and a new secret ends them all.

    Parameters:
      secret: The password, or the key.
      name: Who signs in by the password; None for a key.
    """

    def __init__(self, secret: str, *, name: str | None = None) -> None:
        self.name = name
        self.attempts = Attempts()
        self._secret = secret
        signing = hashlib.scrypt(
            secret.encode(), salt=f"joblog {name or ''}".encode(), n=2**14, r=8, p=1
        )
        self._serializer = URLSafeTimedSerializer(signing, salt="joblog session")
        # Cookies of one host are shared by all its ports: two pages must not end each other's.
        self.cookie = f"joblog_session_{hashlib.sha256(signing).hexdigest()[:8]}"
        self._ended: dict[str, float] = {}
        self._guard = threading.Lock()

    @property
    def by_key(self) -> bool:
        """Whether it asks for a key, and for no name."""
        return self.name is None

    def opens(self, name: str, secret: str) -> bool:
        """Return whether these are the name and the secret, in the same time if not."""
        right = hmac.compare_digest(secret.encode(), self._secret.encode())
        if self.name is not None:
            right &= hmac.compare_digest(name.encode(), self.name.encode())
        return right

    def begin(self) -> str:
        """Return the cookie of a new session."""
        value = self._serializer.dumps(secrets.token_urlsafe(12))
        return value if isinstance(value, str) else value.decode()

    def knows(self, session: str) -> bool:
        """Return whether a cookie is that of a session that goes on."""
        return (name := self._read(session)) is not None and name not in self._ended

    def end(self, session: str) -> None:
        """End a session before its time, in this process."""
        name = self._read(session)
        if name is None:
            return
        now = time.monotonic()
        with self._guard:
            over = [ended for ended, at in self._ended.items() if at < now - SESSION_FOR]
            for ended in over:
                del self._ended[ended]
            self._ended[name] = now

    def _read(self, session: str) -> str | None:
        try:
            name = self._serializer.loads(session, max_age=SESSION_FOR)
        except BadData:
            return None
        return name if isinstance(name, str) else None


class Attempts:
    """Wrong names, passwords and keys: counted by address, and slower for all the more there are.

    Nobody is locked out by what others do from elsewhere.
    """

    def __init__(self) -> None:
        self._by_address: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()
        self._guard = threading.Lock()

    def begin(self, address: str, *, is_shared: bool = False) -> bool:
        """Count a try as a wrong one, until it is taken back; return whether it may be made.

        Parameters:
          address: Where it comes from.
          is_shared: Whether anybody may come from there: then none of them is stopped.
        """
        now = time.monotonic()
        with self._guard:
            if address not in self._by_address and len(self._by_address) >= ADDRESSES:
                self._by_address.clear()
            recent = self._by_address.setdefault(address, deque(maxlen=WRONG_AT_MOST))
            _forget_old(recent)
            if len(recent) >= WRONG_AT_MOST and not is_shared:
                return False
            recent.append(now)
            self._all.append(now)
            _forget_old(self._all)
            return True

    def take_back(self, address: str) -> None:
        """Count a try no longer: it was right."""
        with self._guard:
            for tries in (self._by_address.get(address), self._all):
                if tries:
                    tries.pop()

    @property
    def delay(self) -> float:
        """The seconds to wait before the next answer, whatever it is."""
        with self._guard:
            _forget_old(self._all)
            return min(SLOWEST, SLOWER * len(self._all))


def address_of(request: Request) -> str:
    """Return where a request came from, as far as that can be known.

    A proxy on this machine says it last in X-Forwarded-For; what others say of themselves is
    worth nothing.
    """
    if request.client is None:
        return "unknown"
    host = request.client.host
    forwarded = request.headers.getlist("x-forwarded-for")
    if forwarded and _is_loopback(host):
        return forwarded[-1].rpartition(",")[2].strip()[:64] or host
    return host


def is_shared(request: Request) -> bool:
    """Return whether all who come through a proxy of this machine come from the same address.

    A proxy that says nothing of itself, or speaks through a socket of Unix, is such a one.
    """
    client = request.client
    known = client is not None and not _is_loopback(client.host)
    return not known and "x-forwarded-for" not in request.headers


def _forget_old(times: deque[float]) -> None:
    oldest = time.monotonic() - WRONG_WITHIN
    while times and times[0] < oldest:
        times.popleft()


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
