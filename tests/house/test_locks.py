"""The locks have all that pyproject.toml requires, with hashes, and `make setup` takes the one that fits."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.config import ROOT

sys.path.append(str(ROOT / "requirements"))
import install

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = (install.CPU, install.CUDA)
NAMES = [lock.name for lock in LOCKS]
PYTHONS = [
    {"python_version": f"{major}.{minor}", "python_full_version": f"{major}.{minor}.0"}
    for major, minor in install.PYTHONS
]
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def pinned(lock, python: dict[str, str]) -> dict[str, str]:
    """The versions that a lock has for a Python on Linux, by name."""
    pins = [Requirement(line) for line in install.pins(lock).splitlines()]
    applying = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(LINUX | python)]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in applying}
    assert len(versions) == len(applying), "two versions of one package"
    return versions


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: python["python_version"])
@pytest.mark.parametrize("lock", LOCKS, ids=NAMES)
def test_each_dependency_is_locked_within_its_range(lock, python):
    versions = pinned(lock, python)
    for asked in map(Requirement, [*PROJECT["dependencies"], install.MODEL]):
        assert asked.specifier.contains(versions[canonicalize_name(asked.name)]), asked


@pytest.mark.parametrize("lock", LOCKS, ids=NAMES)
def test_each_package_has_hashes_and_no_address(lock):
    text = lock.read_text(encoding="utf-8")
    for name, entry in install.entries(text).items():
        pin, *hashes = entry.splitlines()
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+", name), "no version of a single index"
        assert Requirement(pin.removesuffix(" \\"))
        assert hashes
        assert all(HASH.fullmatch(line.strip().removesuffix(" \\")) for line in hashes), name
    assert not re.search(r"(?m)://|/|^\s*--(?!hash=sha256:)", re.sub("(?m)^#.*$", "", text))


def test_the_locks_differ_by_torch_and_what_its_build_for_cuda_brings():
    texts = [lock.read_text(encoding="utf-8") for lock in LOCKS]
    cpu, cuda = map(install.entries, texts)
    (torch,) = (name for name in cpu if name.startswith("torch=="))
    assert {name for name in cpu if cpu[name] != cuda.get(name)} == {torch}
    assert not {*HASH.findall(cpu[torch])} & {*HASH.findall(cuda[torch])}
    more = {name.partition("==")[0] for name in cuda.keys() - cpu.keys()}
    assert more
    assert all(re.match("nvidia-|cuda-|triton$", name) for name in more), more


def test_what_locked_packages_require_is_locked_too():
    """By the metadata of those that are installed here, at the version that the lock has."""
    for_cuda = any(line.startswith("triton") for line in metadata.requires("torch") or [])
    versions = pinned(install.CUDA if for_cuda else install.CPU, {})
    model = install.MODEL.partition("==")[0]
    asked, checked = [Requirement(line) for line in PROJECT["dependencies"]], set()
    while asked:
        one = asked.pop()
        name = canonicalize_name(one.name)
        assert one.specifier.contains(versions[name]), one
        if (name, *one.extras) in checked or metadata.version(name).partition("+")[0] != versions[name]:
            continue
        checked.add((name, *one.extras))
        further = map(Requirement, metadata.requires(name) or [])
        asked += [
            each
            for each in further
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *one.extras))
        ]
    assert model in versions
    if len({name for name, *_ in checked}) < 50:
        pytest.skip("other versions are installed here than those of the lock")


@pytest.fixture
def offers(tmp_path, monkeypatch):
    """offers(): makes a file of torch that pip takes here, and no other; its hash."""
    version = next(name for name in install.entries(install.CPU.read_text("utf-8")) if name.startswith("torch=="))[7:]

    def digest(content: bytes) -> str:
        return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

    folder = f"torch-{version}.dist-info"
    files = {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{digest(text.encode())},{len(text)}\n" for path, text in files.items())
    wheel = tmp_path / "wheels" / f"torch-{version}-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in (files | {f"{folder}/RECORD": record + f"{folder}/RECORD,,\n"}).items():
            archive.writestr(path, text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    install.offered.cache_clear()
    yield hashlib.sha256(wheel.read_bytes()).hexdigest()
    install.offered.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or sys.version_info[:2] not in install.PYTHONS, reason="no lock is for it")
@pytest.mark.parametrize("of", ["CPU", "CUDA"])
def test_setup_takes_the_lock_that_has_pips_file_of_torch(offers, tmp_path, monkeypatch, of):
    assert install.chosen() is None, "a file that no lock knows"
    lock = tmp_path / "lock.txt"
    known = getattr(install, of).read_text(encoding="utf-8")
    lock.write_text(
        re.sub(r"(?m)^(torch==\S+).*\n", rf"\1 \\\n    --hash=sha256:{offers} \\\n", known), encoding="utf-8"
    )
    monkeypatch.setattr(install, of, lock)
    assert install.chosen() == lock


@pytest.mark.slow
def test_setup_takes_no_lock_where_pip_has_no_torch(offers, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    assert install.chosen() is None


@pytest.mark.parametrize("other", ["platform", "version_info"])
def test_setup_takes_no_lock_on_another_platform_or_python(monkeypatch, other):
    monkeypatch.setattr(sys, other, {"platform": "darwin", "version_info": (3, 10)}[other])
    monkeypatch.setattr(install, "offered", lambda requirement: pytest.fail("pip is not asked"))
    assert install.chosen() is None
