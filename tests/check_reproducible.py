"""Builds wheel and sdist of the last commit twice, from two copies, and compares them byte by byte; keeps them in DIST.

SOURCE_DATE_EPOCH is the date of that commit, so that another machine with the same tools builds the same files.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, **options) -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr).decode(errors='replace')}")
    return done.stdout


def build(source: bytes, folder: Path, epoch: str, umask: int) -> dict[str, str]:
    """The hashes of what is built from an archive of the sources, unpacked into ``folder``."""
    copy, out = folder / "source", folder / "out"
    with tarfile.open(fileobj=BytesIO(source)) as archive:
        archive.extractall(copy, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for path in copy.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        os.utime(path)  # as if it had been cloned now
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": str(umask)}
    run(sys.executable, "-m", "build", "--outdir", out, copy, cwd=folder, env=environment, umask=umask)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def main(dist: Path) -> None:
    epoch = run("git", "log", "-1", "--format=%ct", cwd=ROOT).decode().strip()
    source = run("git", "archive", "HEAD", cwd=ROOT)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "first", Path(name) / "a_second_one"]
        hashes = []
        for folder, umask in zip(folders, (0o022, 0o027), strict=True):
            folder.mkdir()
            hashes.append(build(source, folder, epoch, umask))
        first, second = hashes
        if first != second or len(first) != 2:
            sys.exit(f"two builds differ:\n{first}\n{second}")
        dist.mkdir(parents=True, exist_ok=True)
        for path in (folders[0] / "out").iterdir():
            shutil.copy(path, dist)
    for file, digest in first.items():
        print(f"{digest}  {dist / file}")
    print(f"wheel and sdist: built twice, the same bytes (SOURCE_DATE_EPOCH={epoch})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
