"""Finds the packages; everything else is in setup.cfg. Shipped YAML and data cards install as packages of their own."""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class ReproducibleSdist(sdist):
    """Packs the same files to the same bytes: sorted, without owners, and dated SOURCE_DATE_EPOCH where that is set.

    Wheels are dated so by setuptools itself.
    """

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        """The ``.tar.gz`` of the folder ``base_dir``; of any other format what setuptools makes."""
        if format != "gztar" or "SOURCE_DATE_EPOCH" not in os.environ:
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        date = int(os.environ["SOURCE_DATE_EPOCH"])

        def plain(entry):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = date, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        path = Path(f"{base_name}.tar.gz")
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", mtime=date, fileobj=file) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(Path(base_dir).rglob("*"), key=lambda part: part.as_posix()):
                archive.add(name, recursive=False, filter=plain)
        return str(path)


os.umask(0o022)  # a wheel keeps the modes of the files that its build makes
setup(
    packages=[*find_packages(include=["mil_zoo", "mil_zoo.*"]), "mil_zoo._configs", "mil_zoo._data_cards"],
    package_dir={"mil_zoo._configs": "configs", "mil_zoo._data_cards": "data_cards"},
    cmdclass={"sdist": ReproducibleSdist},
)
