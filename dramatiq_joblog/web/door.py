"""Sign-in with a key, or with a name and a password, and sessions."""

from __future__ import annotations

import functools
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
#: The maximum number of wrong attempts from one address within :data:`WRONG_WITHIN` seconds.
WRONG_AT_MOST, WRONG_WITHIN = 10, 60.0
#: Seconds of delay for each wrong attempt by anyone in that time, and the maximum.
SLOWER, SLOWEST = 0.02, 1.0
#: The maximum number of addresses remembered.
ADDRESSES = 10_000


class Door:
    """A name and a password, or a key alone; and the sessions of those who gave them.

    Sessions are signed with a key derived from the secret: all processes with the same secret
    accept each other's sessions, and a new secret ends them all.

    Parameters:
      secret: The password, or the key.
      name: The user's name; None for a key.
    """

    def __init__(self, secret: str, *, name: str | None = None) -> None:
        self.name = name
        self.attempts = Attempts()
        self._secret = secret
        signing = _signing_key(secret, name or "")
        self._serializer = URLSafeTimedSerializer(signing, salt="joblog session")
        # Cookies are shared by all ports of a host: two dashboards must not overwrite each other's.
        self.cookie = f"joblog_session_{hashlib.sha256(signing).hexdigest()[:8]}"
        self._ended: dict[str, float] = {}
        self._guard = threading.Lock()

    @property
    def by_key(self) -> bool:
        """Whether it asks for a key without a name."""
        return self.name is None

    def opens(self, name: str, secret: str) -> bool:
        """Return whether the name and the secret are right, in constant time."""
        right = hmac.compare_digest(secret.encode(), self._secret.encode())
        if self.name is not None:
            right &= hmac.compare_digest(name.encode(), self.name.encode())
        return right

    def begin(self) -> str:
        """Return the cookie of a new session."""
        value = self._serializer.dumps(secrets.token_urlsafe(12))
        return value if isinstance(value, str) else value.decode()

    def knows(self, session: str) -> bool:
        """Return whether a cookie is that of a valid session."""
        return (name := self._read(session)) is not None and name not in self._ended

    def end(self, session: str) -> None:
        """End a session early, in this process."""
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
    """Counts wrong attempts by address, and delays all responses the more there are.

    No one is locked out by attempts from other addresses.
    """

    def __init__(self) -> None:
        self._by_address: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()
        self._guard = threading.Lock()

    def begin(self, address: str, *, is_shared: bool = False) -> bool:
        """Count an attempt as wrong until it is taken back; return whether it is allowed.

        Parameters:
          address: The address that it comes from.
          is_shared: Whether many users may share the address; then it is never blocked.
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
        """Take back an attempt that was right."""
        with self._guard:
            for tries in (self._by_address.get(address), self._all):
                if tries:
                    tries.pop()

    @property
    def delay(self) -> float:
        """Seconds to delay the next response, right or wrong."""
        with self._guard:
            _forget_old(self._all)
            return min(SLOWEST, SLOWER * len(self._all))


@functools.lru_cache(maxsize=8)
def _signing_key(secret: str, name: str) -> bytes:
    """Return the key of sessions, derived so that a cookie helps nobody to guess the secret."""
    return hashlib.scrypt(secret.encode(), salt=f"joblog {name}".encode(), n=2**14, r=8, p=1)


def address_of(request: Request) -> str:
    """Return the address that a request came from, as far as known.

    A proxy on this machine appends it to X-Forwarded-For; earlier entries are not trustworthy.
    """
    if request.client is None:
        return "unknown"
    host = request.client.host
    forwarded = request.headers.getlist("x-forwarded-for")
    if forwarded and _is_loopback(host):
        return forwarded[-1].rpartition(",")[2].strip()[:64] or host
    return host


def is_shared(request: Request) -> bool:
    """Return whether all requests through a proxy on this machine have the same address.

    That is so if the proxy adds no header, or connects through a Unix socket.
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
