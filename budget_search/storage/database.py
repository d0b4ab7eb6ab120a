"""Access a study's database: wait for locks of other processes, and explain errors in one line."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from budget_search.core.errors import StudyError
from budget_search.core.formatting import duration
from budget_search.core.signals import ENDING
from budget_search.storage.credentials import mask_passwords

if TYPE_CHECKING:
    import optuna

Value = TypeVar("Value")

# SQLite itself waits this long for a lock, in seconds; signals are deferred meanwhile.
BUSY_SECONDS = 1.0
# How often to look whether the lock is gone, and how often to say that it is not, in seconds.
PROBE_SECONDS, TELL_SECONDS = 0.25, 10.0
_LOCK_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

# The advice in errors about a storage that cannot be read or written.
SQLITE_ADVICE = "free disk space or restore study.db from a copy; to start over, move the study's folder away"
SERVER_ADVICE = "check the server of --storage, then run the same command again: finished evaluations are kept"


class DatabaseLockedError(StudyError):
    """Another process holds the database."""


@dataclass(frozen=True)
class LockWait:
    """How long to wait for a process that holds the database, in seconds, and who is told about it."""

    seconds: float = 0.0
    tell: Callable[[str], None] = lambda text: None


NO_WAIT = LockWait()


@dataclass(frozen=True)
class Database:
    """The database of a study: a SQLite file, or ``url``, the address of any Optuna storage."""

    file: Path
    url: str | None
    wait: LockWait = NO_WAIT

    def storage(self) -> optuna.storages.BaseStorage:
        """A connection. Raises whatever the storage raises; call it in ``access``."""
        import optuna

        path = self._sqlite_file
        if path is None:
            return optuna.storages.get_storage(str(self.url))
        url = self.url or f"sqlite:///{path.resolve()}"
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})

    def access(self, action: Callable[[], Value], *, when_locked: Callable[[], None] = lambda: None) -> Value:
        """Run an action on the database again until no other process holds a lock that prevents it.

        ``when_locked`` is called once before the first wait. Raises DatabaseLockedError after ``wait.seconds``, and
        StudyError if the database is damaged or unreachable.
        """
        waiting: _Waiting | None = None
        while True:
            try:
                with _explained(SERVER_ADVICE if self.url else SQLITE_ADVICE):
                    return action()
            except DatabaseLockedError:
                if waiting is None:
                    when_locked()
                    waiting = _Waiting(self._name, self.wait, time.monotonic())
                waiting.until(self._is_free)

    @property
    def _name(self) -> str:
        path = self._sqlite_file
        return "the database" if path is None else path.name

    @property
    def _sqlite_file(self) -> Path | None:
        if not self.url:
            return self.file
        import sqlalchemy

        try:
            address = sqlalchemy.make_url(self.url)
        except sqlalchemy.exc.ArgumentError:
            return None
        return Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None

    def _is_free(self) -> bool:
        """Whether SQLite grants an exclusive lock, which a commit needs."""
        path = self._sqlite_file
        if path is None:
            return True
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=0)) as connection:
                connection.execute("begin exclusive")
                connection.rollback()
        except sqlite3.OperationalError as error:
            return not is_lock(error)
        except sqlite3.DatabaseError:
            # The next access explains what is wrong.
            return True
        return True


@dataclass
class _Waiting:
    """One wait for a lock, which may take several attempts."""

    name: str
    wait: LockWait
    began: float
    told: float | None = None

    def until(self, is_free: Callable[[], bool]) -> None:
        """Return when the database is free. Raises DatabaseLockedError if that takes too long."""
        while True:
            now = time.monotonic()
            if now - self.began >= self.wait.seconds:
                raise DatabaseLockedError(self._given_up())
            self._tell(now)
            time.sleep(min(PROBE_SECONDS, self.wait.seconds))
            if is_free():
                return

    def _tell(self, now: float) -> None:
        if self.told is not None and now - self.told < TELL_SECONDS:
            return
        if self.told is None:
            limit = duration(self.wait.seconds)
            self.wait.tell(f"another process holds {self.name}: waiting for it, up to {limit} (--storage-timeout)")
        else:
            self.wait.tell(f"another process still holds {self.name}, after {duration(now - self.began)}")
        self.told = now

    def _given_up(self) -> str:
        waited = f" for more than {duration(self.wait.seconds)}" if self.wait.seconds else ""
        return (
            f"another process holds {self.name} (database is locked){waited}; close that program (a dashboard, a "
            "backup, a database browser), or wait longer with --storage-timeout MINUTES, then run the same command "
            "again: finished evaluations are kept"
        )


def database_message(error: BaseException) -> str:
    """The first line of the database's own message, which Optuna and SQLAlchemy wrap."""
    own = _own_error(error)
    return str(own).strip().splitlines()[0] if str(own).strip() else type(own).__name__


def _own_error(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error


def is_lock(error: BaseException) -> bool:
    """Whether SQLite reports that another process holds the database."""
    # The low byte of an extended code is its primary code.
    return getattr(_own_error(error), "sqlite_errorcode", 0) & 0xFF in _LOCK_CODES


@contextlib.contextmanager
def _explained(advice: str) -> Iterator[None]:
    """Raise a one-line StudyError if the database is locked, damaged or unreachable; signals are deferred meanwhile."""
    import sqlalchemy.exc
    from optuna.exceptions import OptunaError

    try:
        with _defer_signals():
            yield
    except (OptunaError, sqlalchemy.exc.SQLAlchemyError, LookupError, ValueError, TypeError, RuntimeError) as error:
        message = mask_passwords(database_message(error))
        kind = DatabaseLockedError if is_lock(error) else StudyError
        raise kind(f"the study cannot be read or written ({message}); {advice}") from error


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer a first signal that ends the command: an interrupted connection may leave the database locked."""
    pending: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}

    def defer(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))
        if len(pending) > 1:
            # Deliver the first signal now. Its handler may have installed another handler for the second.
            with contextlib.suppress(KeyboardInterrupt):
                handlers[pending[0][0]](*pending[0])
            current = signal.getsignal(number)
            (current if callable(current) and current is not defer else handlers[number])(number, frame)

    # Only the main thread can set signal handlers.
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in ENDING}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in pending[:1]:
            handlers[number](number, frame)
