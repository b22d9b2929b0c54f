"""Where the tables of an OMOP CDM are: in a folder or in a zip, as single files or as folders of parts."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ehrjax.data.readers.tables import Table

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")  # where a table is there twice, the first is taken


class OmopFiles:
    """The files of each table, by name in any case; close it (or use `with`) when done.

    Raises FileNotFoundError where there is no such place and ValueError for a file that is no zip.
    """

    def __init__(self, path: str | Path, label: str | None = None):
        root = Path(path).absolute()
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such folder or zip: give the folder or zip of the OMOP CDM tables.")
        if root.is_dir():
            names = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]
            zips = [name for name in names if name.lower().endswith(".zip") and "/" not in name]
            if not _find(names, "person") and len(zips) == 1:
                root = root / zips[0]
        self.label = label or (root.stem if root.suffix.lower() == ".zip" else root.name)
        self._root, self._zip = root, None
        if root.is_file():
            try:
                self._zip = zipfile.ZipFile(root)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{root}: not a readable zip ({error}): fetch it again, or give a folder.") from error
            names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        self.names = [name for name in names if not _is_junk(name)]

    def __enter__(self) -> "OmopFiles":
        return self

    def __exit__(self, *_) -> None:
        if self._zip is not None:
            self._zip.close()

    def has(self, table: str) -> bool:
        return bool(_find(self.names, table))

    def open(self, table: str) -> Iterator[Table]:
        """The table's files, one after the other; each may be read until the next is asked for."""
        for name in _find(self.names, table):
            file = f"{self.label}/{name}"
            if self._zip is None:
                yield Table(self._root / name, file)
            elif name.lower().endswith(".parquet"):
                with self._unpacked(name) as path:  # parquet is read from its end
                    yield Table(path, file)
            else:
                with self._zip.open(name) as member:
                    yield Table(member, file)

    @contextmanager
    def _unpacked(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.parquet"
            with self._zip.open(name) as member, path.open("wb") as out:
                shutil.copyfileobj(member, out, 1 << 20)
            yield path


def _find(names: Sequence[str], table: str) -> list[str]:
    """`table.csv` (the shallowest such), else the parts in a folder called `table`."""
    for suffix in _SUFFIXES:
        same = [n for n in names if PurePosixPath(n).name.lower() == table + suffix]
        if same:
            return [min(same, key=lambda n: (n.count("/"), n))]
    for suffix in _SUFFIXES:
        parts = [n for n in names if PurePosixPath(n).parent.name.lower() == table and n.lower().endswith(suffix)]
        if parts:
            return sorted(parts)
    return []


def _is_junk(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
