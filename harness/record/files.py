"""Files that are written whole or not at all, their hashes, and who was writing one that was left behind."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")  # the name that `temporary` gives
CARD = "README.md"  # a saved model's


def write_json(value: Any, path: Path) -> None:
    """Write `value` to `path`, all or nothing."""
    text = json.dumps(value, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path` to be written to, which then takes its place, synced.

    Whatever happens on the way, the file that was there stays whole. An OSError names `path`.
    """
    new = temporary(path)
    try:
        with naming(path):
            yield new
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.replace(new, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only folder, in which there is none
            new.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems sync no folders
        sync(path.parent)


def place(new: Path, folder: Path) -> None:
    """Put the folder `new` into the place of `folder`, synced; what was there goes. An OSError names `folder`."""
    gone = _aside(folder, "old")
    with naming(folder):
        for path in (*new.rglob("*"), new):
            sync(path)
        if folder.exists():
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(folder, gone)
        os.rename(new, folder)
    shutil.rmtree(gone, ignore_errors=True)


def without_link(path: Path) -> Path:
    """`path`, where a link is removed if there is one: a study that was received may have links to files elsewhere."""
    if path.is_symlink():
        path.unlink()
    return path


def beginnings(path: Path) -> list[Path]:
    """Where folders that belong to the record at `path` are made, or were left by a process that died meanwhile."""
    return [_aside(model_folder(path), kind) for kind in ("tmp", "old", "scored")]


def scored_model(path: Path) -> Path:
    """Where the model of the record at `path` lies while another engine reads it, unless it is kept whole anyway."""
    return _aside(model_folder(path), "scored")


def _aside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def temporary(path: Path) -> Path:
    """A new name beside `path` for what is to take its place. It tells who is at it, should it be left behind."""
    return path.with_name(f".{path.name}.{machine_tag()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def maker(path: Path) -> tuple[str, int] | None:
    """Whose temporary file or folder `path` is: the tag of a machine and a process there; None if it is none."""
    match = TEMPORARY.fullmatch(path.name)
    return None if match is None else (match[1], int(match[2]))


@functools.cache
def machine() -> str:
    """What must be the same for a process id to mean the same: the boot, and the namespace (a container has its own).

    Names of hosts don't tell: containers may share theirs.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return socket.gethostname()


def machine_tag() -> str:
    """The machine in few letters, for a file's name."""
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within names `path`: those of writing name no file, others a temporary one."""
    try:
        yield
    except OSError as error:
        words = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, words, str(path)) from error


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_folder(path: Path) -> Path:
    """Where the weights lie that belong to the record at `path`."""
    return path.with_suffix("")


def hashes(folder: Path) -> dict[str, str]:
    """As `Saved.files`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: sha256(path) for name, path in named.items() if name != CARD}


def pending(path: Path) -> Path:
    """Where what will be the record at `path` waits until the items that it was written with are in place."""
    return path.with_name(f".{path.name}.scored")


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, also of a pipe."""
    require_end(path)
    return path.read_bytes()


def require_end(path: Path) -> None:
    """Raise OSError for a pipe or a device, which may lie in a folder that was received: its reader waits for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder the system says what it is
        raise OSError(errno.EINVAL, "It is a pipe or a device", str(path))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes. Raises OSError, also of a pipe."""
    require_end(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
