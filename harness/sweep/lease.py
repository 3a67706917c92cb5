"""Leases: which process runs a cell. One process at a time holds a lease, on any file system that machines share.

A lease is a folder that holds one file, TOKEN.json, named after its owner's random token. It relies on what every
shared file system does atomically (flock over NFS is not among that), and compares no two clocks:

- A process takes a lease by moving a folder with the file into place, which fails if a folder with a file is there.
- Only the owner writes to the file, every HEARTBEAT seconds: a counter, and the progress of the cell.
- A lease is free if its owner removed the file or is dead: a process of this machine that has ended, or a process
  elsewhere whose file has not changed for SILENCE seconds of watching.
- To take over a dead owner's lease, a process removes the file, and then takes the lease as anyone else would. The
  token ensures that it removes only the file it judged, never that of a process that took over first.
- An owner that was taken for dead and wakes up finds its file gone, and stops its job.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.record import machine as _machine

HEARTBEAT = 10.0  # seconds between two writes of an owner
SILENCE = 120.0  # seconds without a write after which an owner on another machine is taken for dead
GLANCE = 1.0  # seconds between two reads of a lease that is waited for
PATIENCE = 20  # such reads after which it is said what is waited for: an owner writes more often
SIZE = 2000  # bytes of a file from its start, so that a full disk stops no heartbeat
KINDS = {"host": str, "machine": str, "pid": int, "processes": dict, "started": int | float, "progress": object}
PID = re.compile(r"[0-9]{1,9}")
LATEST = 2**53  # seconds, which a float holds


class Held(UserError):
    """Another live process has the lease."""


class Lease:
    """A lease of this process. A call writes the progress of its job.

    lost: whether another process took it over, because this one was silent for too long.
    """

    def __init__(self, path: Path, owner: dict[str, Any]):
        self.path, self.lost = path, False
        self._owner = owner
        self._lock, self._released = threading.Lock(), threading.Event()
        self._stop: Callable[[], None] = lambda: None

    def __call__(self, progress: dict) -> None:
        self._beat(progress=progress)

    def works(self, pid: int, stop: Callable[[], None]) -> None:
        """Register a process that works under the lease: nobody takes over while it lives. `stop` ends it."""
        self._stop = stop
        self._beat(processes=self._owner["processes"] | {str(pid): _born(pid)})

    def keep(self) -> None:
        """Write a heartbeat until the lease is released or lost."""
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
            pass  # out of reach for now; the next heartbeat may succeed


@contextmanager
def hold(folder: Path, what: str, patiently: bool = False) -> Iterator[Lease]:
    """Hold the lease `folder` on `what`. If another process has it, wait `patiently`, or raise Held if it is alive."""
    while (lease := _take(folder)) is None:
        if patiently:
            wait([folder])
        elif alive(folder):
            holder = owner(folder)
            by = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            raise Held(f"{what} is being run by {by}.")
    keeper = threading.Thread(target=lease.keep, daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        lease.release()
        keeper.join()
        _remove(lease.path)


def owner(folder: Path) -> dict[str, Any] | None:
    """The owner of the lease `folder`: host, pid, started, progress, …; None if it is known that none is alive.

    silent: seconds since one on another machine wrote, if this machine and the file system agree on the time; else 0.
    """
    path = _file(folder)
    if path is None or record.maker(folder) is not None:  # it is not yet in place
        return None
    content = _read(path)
    if content is None or _ended(content):
        return None
    return content | {"silent": 0.0 if content["machine"] == _machine() else _age(path)}


def alive(folder: Path) -> bool:
    """Whether a live process has the lease `folder`.

    On another machine, one sign of life is waited for, and after SILENCE seconds without one the lease is freed.
    """
    path, seen, looks = _file(folder), dict[Path, tuple[bytes, int]](), -1
    if path is not None and (content := _read(path)) is not None and content["machine"] == _machine():
        return not _ended(content)
    while not _freed(folder, seen):
        unchanged = max((number for _, number in seen.values()), default=0)
        if unchanged <= looks:
            return True  # its owner wrote, or another has it now
        looks = unchanged
        if looks == PATIENCE:
            print(f"Waiting for a sign of life of what runs {folder.name}, {SILENCE:.0f} s at most.", file=sys.stderr)
        time.sleep(GLANCE)
    return False


def wait(folders: Sequence[Path]) -> list[Path]:
    """Wait until some of the leases `folders` are free; returns those."""
    seen: dict[Path, tuple[bytes, int]] = {}
    while not (free := [folder for folder in folders if _freed(folder, seen)]):
        time.sleep(GLANCE)
    return free


def left_behind(folders: Iterable[Path], now: float) -> list[Path]:
    """Temporary files and folders in `folders` whose makers died before they moved them into place.

    As with leases, a maker of this machine is dead if it has ended, and one elsewhere after SILENCE seconds without a
    write. now: the time by the clock of the file system of `folders`.
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
        return False  # it was just moved into place


def _freed(folder: Path, seen: dict[Path, tuple[bytes, int]]) -> bool:
    """Whether a lease is free, or its owner is now taken for dead.

    seen: by file, its content and how many reads found it unchanged. Silence is counted in reads, not by a clock, so
    that a file system that hangs for minutes makes nobody seem dead.
    """
    path = _file(folder)
    if path is None:
        return True
    try:
        content = record.content_of(path)
    except OSError:
        return False  # released just now, or out of reach; the next read tells
    last, looks = seen.get(path, (None, 0))
    seen[path] = content, looks + 1 if content == last else 0
    owner = _read(path)
    dead = seen[path][1] >= SILENCE / GLANCE
    if owner is not None and owner["machine"] == _machine():
        dead = _ended(owner)  # it may be silent for any time, such as after Ctrl-Z
    if dead:
        _remove(path)
    return dead


def _take(folder: Path) -> Lease | None:
    """Take the lease `folder`; None if a process has it that may be alive. Raises OSError."""
    token, me = secrets.token_hex(8), os.getpid()
    identity = {"host": socket.gethostname(), "machine": _machine(), "pid": me, "processes": {str(me): _born(me)}}
    identity |= {"started": time.time(), "beats": 0, "progress": {}}
    new = record.temporary(folder)
    try:
        with record.naming(folder):
            new.mkdir(parents=True)
            (new / f"{token}.json").write_text(_text(identity), encoding="utf-8")
        while not _moved(new, folder):
            path = _file(folder)
            if path is None:
                continue  # released just now
            other = _read(path)
            if other is None or not _ended(other):
                return None
            _remove(path)
        return Lease(folder / f"{token}.json", identity)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _moved(new: Path, folder: Path) -> bool:
    """Move `new` to `folder`, unless that is a folder with content."""
    try:
        os.rename(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with contextlib.suppress(OSError):  # an empty one, if the file system does not replace it
            folder.rmdir()
        return False
    return True


def _remove(path: Path) -> None:
    """Remove an owner's file, and the folder unless it holds another owner's file by now."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _file(folder: Path) -> Path | None:
    """The owner's file in a lease; None if there is none."""
    try:
        return next(folder.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """What an owner wrote; None if it can't be read: it is being written or removed, or is no owner's file."""
    try:
        content = json.loads(record.content_of(path))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and _whole(content) else None


def _whole(owner: dict[str, Any]) -> bool:
    """Whether an owner has all that is read of it, as `_take` writes it."""
    if not all(name in owner and isinstance(owner[name], kind) for name, kind in KINDS.items()):
        return False
    return 0 <= owner["started"] < LATEST and all(map(PID.fullmatch, owner["processes"]))


def _age(path: Path) -> float:
    """Seconds since `path` was written, by this machine's clock."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _text(owner: dict[str, Any]) -> str:
    return json.dumps(owner).ljust(SIZE)


def _ended(owner: dict[str, Any]) -> bool:
    """Whether an owner and its processes are known to have ended; never known of another machine."""
    return owner["machine"] == _machine() and not any(_lives(int(pid), b) for pid, b in owner["processes"].items())


def _lives(pid: int, born: str | None) -> bool:
    """Whether process `pid` exists and is the one that began at `born`."""
    return _there(pid) and _born(pid) in (None, born)


def _there(pid: int) -> bool:
    """Whether process `pid` exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _born(pid) != ""


def _born(pid: int) -> str | None:
    """When process `pid` began, in clock ticks since the boot, which no change of the clock affects.

    "" for a zombie; None if there is no such process, or the system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else start
