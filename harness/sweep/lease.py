"""Claims: which process runs a cell, held by one at a time on any file system that machines share.

A claim is a folder that holds one file, TOKEN.json, named after its owner's random token. It relies on what every
shared file system does in one step (flock over NFS is not among that), and compares no two clocks:

- It is taken by moving a folder with the file in it into place, which fails where a folder with a file is.
- Its owner, and nobody else, writes to the file, every HEARTBEAT seconds: a counter, and how far the cell is.
- It is free when the owner removed it, or is dead: a process of this machine that has ended, or one elsewhere whose
  file has not changed for SILENCE seconds before the eyes of whoever waits for the claim.
- A dead owner's claim is taken over by removing its file, and then taking the claim as anyone else would. The token
  makes sure that only the file which was judged can be removed, never that of whoever took over first.
- An owner that was taken for dead and wakes up finds its file gone, and stops its job.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.record import machine as _machine

HEARTBEAT = 10.0  # seconds between an owner's signs of life
SILENCE = 120.0  # seconds without one after which an owner on another machine is taken for dead
GLANCE = 1.0  # seconds between looks at claims that are waited for
SIZE = 2000  # bytes, with which a file begins: later words fit in, so that a full disk silences nobody
KEYS = {"host", "machine", "pid", "processes", "started", "progress"}


class Held(UserError):
    """Another live process has the claim."""


class Claim:
    """A claim of this process. Called with what a job reports, it shows that as the progress.

    lost: whether another process took it over, since this one had given no sign of life for too long.
    """

    def __init__(self, path: Path, owner: dict[str, Any]):
        self.path, self.lost = path, False
        self._owner = owner
        self._lock, self._released = threading.Lock(), threading.Event()
        self._stop: Callable[[], None] = lambda: None

    def __call__(self, progress: dict) -> None:
        self._beat(progress=progress)

    def works(self, pid: int, stop: Callable[[], None]) -> None:
        """Process `pid` works on what is claimed: no one may take over while it lives; `stop` ends it, if need be."""
        self._stop = stop
        self._beat(processes=self._owner["processes"] | {str(pid): _born(pid)})

    def keep(self) -> None:
        """Give signs of life until the claim is released or lost."""
        while not self._released.wait(HEARTBEAT) and not self.lost:
            self._beat()

    def release(self) -> None:
        self._released.set()

    def _beat(self, **changed: Any) -> None:
        with self._lock:
            if not self.lost:
                self._write(changed)
        if self.lost:
            self._stop()

    def _write(self, changed: dict[str, Any]) -> None:
        self._owner |= changed | {"beats": self._owner["beats"] + 1}
        try:
            with open(self.path, "r+", encoding="utf-8") as file:  # fails where it was removed
                file.write(_text(self._owner))
                file.truncate()
        except FileNotFoundError:
            self.lost = True
        except OSError:
            pass  # out of reach for now: the next beat may come through


@contextmanager
def hold(folder: Path, what: str, patiently: bool = False) -> Iterator[Claim]:
    """Hold the claim `folder` on `what`; where another has it, raise Held, or wait for it `patiently`."""
    while (claim := _take(folder)) is None:
        if not patiently:
            found = owner(folder)
            by = f"process {found['pid']} on {found['host']}" if found else "another process"
            raise Held(
                f"{what} is being run by {by} already (if not so, delete {folder}, "
                f"or let a sweep take it over after {SILENCE:.0f} s without a sign of life)."
            )
        wait([folder])
    keeper = threading.Thread(target=claim.keep, daemon=True)
    keeper.start()
    try:
        yield claim
    finally:
        claim.release()
        keeper.join()
        _remove(claim.path)


def owner(folder: Path) -> dict[str, Any] | None:
    """What the claim `folder` says of its owner: host, pid, started, progress, …; None if none is known to live."""
    path = _file(folder)
    if path is None or record.maker(folder) is not None:  # one that is not yet in its place
        return None
    found = _read(path)
    return None if found is None or _ended(found) else found


def wait(folders: Sequence[Path]) -> list[Path]:
    """Those of the claims `folders` that are free, as soon as some are."""
    seen: dict[Path, tuple[bytes, int]] = {}
    while not (free := [folder for folder in folders if _freed(folder, seen)]):
        time.sleep(GLANCE)
    return free


def left_behind(folders: Iterable[Path], now: float) -> list[Path]:
    """Temporary files and folders in `folders` whose makers are dead, and who never came to put them in their place.

    As with claims, one of this machine is dead when it has ended, and one elsewhere after SILENCE seconds in which
    nothing was written. now: the time by the clock that `folders` take theirs from.
    """
    return [path for folder in folders for path in sorted(folder.glob(".*.tmp")) if _left(path, now)]


def _left(path: Path, now: float) -> bool:
    maker = record.maker(path)
    if maker is None:
        return False
    machine, pid = maker
    if machine == record.machine_tag():
        return not _there(pid)
    try:
        return now - path.stat().st_mtime > SILENCE
    except FileNotFoundError:
        return False  # it took its place at this moment


def _freed(folder: Path, seen: dict[Path, tuple[bytes, int]]) -> bool:
    """Whether a claim is free, also since its owner, by now, is taken for dead.

    seen: by an owner's file what was in it, and in how many looks that was the same. Silence is counted in looks and
    not by a clock, so that a file system that hung for minutes speaks against no one.
    """
    path = _file(folder)
    if path is None:
        return True
    try:
        content = path.read_bytes()
    except OSError:
        return False  # released at this moment, or out of reach for now: the next look tells
    last, looks = seen.get(path, (None, 0))
    seen[path] = content, looks + 1 if content == last else 0
    found = _read(path)
    here = found is not None and found["machine"] == _machine()  # it may be silent as long as it likes, by Ctrl-Z say
    dead = _ended(found) if here else seen[path][1] >= SILENCE / GLANCE
    if dead:
        _remove(path)
    return dead


def _take(folder: Path) -> Claim | None:
    """A claim of this process on `folder`; None where a process has it that may live. Raises OSError."""
    token, me = secrets.token_hex(8), os.getpid()
    found = {"host": socket.gethostname(), "machine": _machine(), "pid": me, "processes": {str(me): _born(me)}}
    found |= {"started": time.time(), "beats": 0, "progress": {}}
    made = record.temporary(folder)
    try:
        with record.naming(folder):
            made.mkdir(parents=True)
            (made / f"{token}.json").write_text(_text(found), encoding="utf-8")
        while not _moved(made, folder):
            path = _file(folder)
            if path is None:
                continue  # released at this moment
            other = _read(path)
            if other is None or not _ended(other):
                return None
            _remove(path)
        return Claim(folder / f"{token}.json", found)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _moved(made: Path, folder: Path) -> bool:
    """Move `made` to `folder`, unless that is a folder with something in it."""
    try:
        os.rename(made, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with contextlib.suppress(OSError):  # an empty one, where the file system doesn't replace that itself
            folder.rmdir()
        return False
    return True


def _remove(path: Path) -> None:
    """Remove an owner's file, and the folder unless another's is in it by now."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _file(folder: Path) -> Path | None:
    """The owner's file in a claim; None if there is none."""
    try:
        return next(folder.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """What an owner wrote; None if that can't be read: it is being written or removed, or not ours."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= KEYS else None


def _text(owner: dict[str, Any]) -> str:
    return json.dumps(owner).ljust(SIZE)


def _ended(owner: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended, with all that works for it; of another machine none is."""
    return owner["machine"] == _machine() and not any(_lives(int(pid), b) for pid, b in owner["processes"].items())


def _lives(pid: int, born: str | None) -> bool:
    """Whether process `pid` is there, and is the one that was born then."""
    return _there(pid) and _born(pid) in (None, born)


def _there(pid: int) -> bool:
    """Whether there is a process `pid` that is more than a corpse."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _born(pid) != ""


def _born(pid: int) -> str | None:
    """When process `pid` began, in clock ticks since the boot, which no setting of a clock moves.

    "" for one that has ended but was not yet waited for; None where the system does not tell, or there is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else start
