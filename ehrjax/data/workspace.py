"""Writing a folder so that it appears under its name only when it is complete, whatever happens to the process."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`; its subfolder `store` becomes `out` when the block ends without an error.

    The folder holds a locked file as long as its process lives, so that what a killed process left is known and is
    removed by the next one. Raises OSError naming `out` where it cannot be written.
    """
    with naming_the_folder(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        folder = out.parent / f"{_prefix(out)}{os.getpid()}-{secrets.token_hex(4)}"
        (folder / "store").mkdir(parents=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - stays open and locked until the end
        if fcntl:
            with suppress(OSError):  # a file system without locks: what is killed there stays for the user to remove
                fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
        with naming_the_folder(out):
            for path in (*(folder / "store").iterdir(), folder / "store"):  # subfolders' files: see `flush_to_disk`
                _flush(path)
            if out.exists():
                os.replace(out, folder / "old")
            os.replace(folder / "store", out)
            _flush(out.parent)
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming_the_folder(out: Path) -> Iterator[None]:
    """Turn an OSError (read-only, disk full, ...) into one that names the folder that was being written."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        message = f"cannot write {out}: {reason}. Choose a folder with free space that you may write to."
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def _prefix(out: Path) -> str:
    return f".{out.name}.building-"


def _remove_leftovers(out: Path) -> None:
    for folder in out.parent.iterdir():
        if folder.name.startswith(_prefix(out)) and not _is_locked(folder / "lock"):
            shutil.rmtree(folder, ignore_errors=True)


def _is_locked(file: Path) -> bool:
    if not fcntl or not file.exists():
        return False
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def flush_to_disk(folder: Path) -> None:
    """Have the disk take a folder's files, so that a complete store stays complete when the power fails."""
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
