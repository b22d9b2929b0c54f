"""PhysioNet / Computing in Cardiology Challenge 2012 (Silva et al., 2012, CinC 39:245) -> event batches.

The first 48 hours of ICU stays, one text file a stay (Time, Parameter, Value), in folders or in `set-x.tar.gz`, with
`Outcomes-x.txt` beside them. Times count from ICU admission, which is `EPOCH` for every stay.

- A stay is a subject and its only encounter, `ENCOUNTER//icu_first_48h`, with the number RecordID; it ends after 48 h,
  since nothing of what follows is in the files. Measurements are `VITAL//PHYSIONET2012//HR`, `LAB//PHYSIONET2012//Na`.
- Age (whole years; 90 stands for all above 89) gives a birth half a year before the birthday that it implies; Gender is
  `GENDER//F` or `GENDER//M`; ICUType `ICU_ADMISSION//...`, in MIMIC-IV's words where it has the unit.
- An outcome is a fact of the whole stay: its events stand at `OUTCOME_HOURS`, after the window. Deaths stand at the
  day of Survival, never before that. SAPS-I and SOFA come with the outcomes and stand there too.
- `-1` is unknown: quarantined as `unknown_value`. Values are not judged here; see `ehrjax.data.variables`.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from ehrjax.data.events import (
    BIRTH_CODE,
    DEATH_CODE,
    ENCOUNTER_END_PREFIX,
    ENCOUNTER_PREFIX,
    STATIC_TIME,
    EventBatch,
    EventStream,
)
from ehrjax.data.readers.clinical import DAY, SortedIds, code_at
from ehrjax.data.readers.tables import Block, EventPart, Field, Table, read_table

EPOCH = 1_325_376_000_000_000  # 2012-01-01 00:00 UTC: admission, in microseconds
WINDOW_HOURS = 48
OUTCOME_HOURS = 49
VISIT_CLASS = "icu_first_48h"

VITALS = ("DiasABP", "FiO2", "GCS", "HR", "Height", "MAP", "MechVent", "NIDiasABP", "NIMAP", "NISysABP", "RespRate",
          "SaO2", "SysABP", "Temp", "Urine", "Weight")  # fmt: skip
LABS = ("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "Glucose", "HCO3", "HCT", "K",
        "Lactate", "Mg", "Na", "PaCO2", "PaO2", "Platelets", "TroponinI", "TroponinT", "WBC", "pH")  # fmt: skip
_CODES = [f"VITAL//PHYSIONET2012//{name}" for name in VITALS] + [f"LAB//PHYSIONET2012//{name}" for name in LABS]
_RECORD_ID, _AGE, _GENDER, _UNIT = range(len(_CODES), len(_CODES) + 4)
_PARAMETERS = {name.lower(): i for i, name in enumerate((*VITALS, *LABS, "RecordID", "Age", "Gender", "ICUType"))}
_GENDERS = ["GENDER//F", "GENDER//M"]
_UNITS = [
    "ICU_ADMISSION//Coronary Care Unit (CCU)",
    "ICU_ADMISSION//Cardiac Surgery Recovery Unit (CSRU)",
    "ICU_ADMISSION//Medical Intensive Care Unit (MICU)",
    "ICU_ADMISSION//Surgical Intensive Care Unit (SICU)",
]
_OUTCOMES = ["OUTCOME//PHYSIONET2012//DISCHARGED_ALIVE", "OUTCOME//PHYSIONET2012//IN_HOSPITAL_DEATH"]
_SCORES = {"length_of_stay": "LENGTH_OF_STAY", "saps": "SAPS_I", "sofa": "SOFA"}

_HOUR, _YEAR = DAY // 24, round(365.25 * DAY)
_STAY_FIELDS = tuple(Field(name.lower(), (name,)) for name in ("Time", "Parameter", "Value"))
_OUTCOME_FIELDS = (
    Field("record_id", ("RecordID",)),
    Field("died", ("In-hospital_death",)),
    Field("survival", ("Survival",), required=False),
    Field("length_of_stay", ("Length_of_stay",), required=False),
    Field("saps", ("SAPS-I",), required=False),
    Field("sofa", ("SOFA",), required=False),
)
_STAY_NAME = re.compile(r"\d+\.txt", re.IGNORECASE)
_OUTCOME_NAME = re.compile(r"outcomes.*\.txt", re.IGNORECASE)
_ARCHIVE_NAME = re.compile(r".+\.(tar\.gz|tgz)", re.IGNORECASE)
_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d)")
_MAX_STAY_BYTES = 16 << 20  # real ones have some ten kilobytes
_HEADER = b"Time,Parameter,Value\n"
_PLAIN_START = re.compile(re.escape(_HEADER) + rb"\d\d:\d\d,RecordID,\d+\n")
_BUNDLE_BYTES = 1 << 20


def read_physionet2012(path: str | Path, *, label: str | None = None) -> EventStream:
    """Events of all sets in the folder `path` (or of one archive), stays first, one after another in batches of one.

    `label` names the data set in `EventBatch.file` (default: its name). A stay read before, in another set or unpacked
    beside its archive, is quarantined as `duplicate_stay`, an outcome of a stay that is not there as `unknown_patient`.
    A stay needs no measurement and no outcome. Raises FileNotFoundError where there is no stay at all, and ValueError
    naming the file where it is damaged, empty or lacks a column.
    """
    root = Path(path).absolute()
    label = label or root.name
    known: set[int] = set()
    has_file = False
    for bundle in _bundle(_find_stays(root, label)):
        has_file = True
        yield from _read_stays(bundle, known)
    if not has_file:
        raise FileNotFoundError(_nothing_found(root))
    if not known:
        raise ValueError(f"{root}: no stay has a RecordID: there is nothing to read.")
    stays, seen = SortedIds(), SortedIds()
    stays.ids = np.array(sorted(known), np.int64)
    for table in _find_outcomes(root, label):
        yield from _read_outcomes(table, stays, seen)


# Files


def _find_stays(root: Path, label: str) -> Iterator[Table]:
    if root.is_file():
        yield from _read_archive(root, label)
        return
    for file in _files(root, _STAY_NAME):
        yield Table(file, f"{label}/{file.relative_to(root).as_posix()}")
    for file in _files(root, _ARCHIVE_NAME):
        yield from _read_archive(file, f"{label}/{file.relative_to(root).as_posix()}")


def _find_outcomes(root: Path, label: str) -> Iterator[Table]:
    """All outcomes in the folder; for a single set those of its letter beside it."""
    for file in _files(root, _OUTCOME_NAME) if root.is_dir() else ():
        yield Table(file, f"{label}/{file.relative_to(root).as_posix()}")
    for file in files_beside(root):
        yield Table(file, f"{label}/{file.name}")


def files_beside(path: str | Path) -> list[Path]:
    """What is read beside a single set (`set-a.tar.gz`, or a folder `set-a`): its outcomes, where they are there."""
    root = Path(path).absolute()
    name = re.sub(r"(?i)^set-(\w+?)(\.tar\.gz|\.tgz)?$", r"Outcomes-\1.txt", root.name)
    beside = root.parent / name
    return [beside] if name != root.name and beside.is_file() else []


def _files(root: Path, name: re.Pattern) -> list[Path]:
    found = (p for p in root.rglob("*") if name.fullmatch(p.name) and p.is_file()) if root.is_dir() else ()
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))


def _read_archive(file: Path, name: str) -> Iterator[Table]:
    """The stays of a .tar.gz, one in memory at a time; of a member's path only the last part is looked at."""
    try:
        with gzip.open(file) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                stem = PurePosixPath(member.name).name
                if not (member.isreg() and _STAY_NAME.fullmatch(stem)):
                    continue
                if member.size > _MAX_STAY_BYTES:
                    raise ValueError(
                        f"{name}/{stem}: {member.size:,} bytes are too many for a stay (limit {_MAX_STAY_BYTES:,}): "
                        "is this the archive of the challenge?"
                    )
                yield Table(io.BytesIO(archive.extractfile(member).read()), f"{name}/{stem}")
            while unzipped.read(1 << 20):  # to the end, where a cut or damaged archive shows
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name}: cannot be read to its end ({error}): fetch it again.") from error


def _nothing_found(root: Path) -> str:
    if not root.exists():
        return f"{root}: no such folder: give the folder that holds set-a/ or set-a.tar.gz."
    found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "an archive without stays"
    return f"{root}: no stay (like 132539.txt) and no set-x.tar.gz in it (found {found or 'nothing'})."


# Stays


class _Bundle(NamedTuple):
    """Files read as one table: G stays, of which stay g has the table's rows from `starts[g]` (counted from 0) on.

    To start a parser for each of thousands of files of some ten kilobytes takes much longer than to parse them.
    """

    table: Table
    files: list[str]
    starts: np.ndarray

    @classmethod
    def join(cls, files: list[str], bodies: list[bytes]) -> "_Bundle":
        starts = np.cumsum([0] + [body.count(b"\n") for body in bodies[:-1]])
        return cls(Table(io.BytesIO(_HEADER + b"".join(bodies)), files[0]), files, starts)


def _bundle(tables: Iterator[Table]) -> Iterator[_Bundle]:
    """The same files in the same order; one that is not of the plain form is left to the parser alone."""
    files, bodies, size = [], [], 0
    for table in tables:
        body = _plain_body(table.source)
        if files and (body is None or size > _BUNDLE_BYTES):
            yield _Bundle.join(files, bodies)
            files, bodies, size = [], [], 0
        if body is None:
            yield _Bundle(table, [table.file], np.zeros(1, np.int64))
        else:
            files.append(table.file)
            bodies.append(body)
            size += len(body)
    if files:
        yield _Bundle.join(files, bodies)


def _plain_body(source: Path | BinaryIO) -> bytes | None:
    """Rows of a file as the challenge has them, a line each and first its RecordID; None of any other file."""
    if isinstance(source, Path):
        if source.stat().st_size > _BUNDLE_BYTES:
            return None
        text = source.read_bytes()
    else:
        text = source.getvalue()
    text = text.replace(b"\r\n", b"\n")
    text += b"" if text.endswith(b"\n") else b"\n"
    num_rows = text.count(b"\n") - 1
    is_plain = _PLAIN_START.match(text) and text.isascii() and text.count(b",") == 2 * (num_rows + 1)
    return None if not is_plain or re.search(rb'["\r\0]|\n\n', text) else text[len(_HEADER) :]


def _read_stays(bundle: _Bundle, known: set[int]) -> Iterator[EventBatch]:
    """A batch a stay, or two where a block ends in it; `known` are the stays read before, and then also these."""
    subjects, is_duplicate = np.full(len(bundle.files), -1), np.zeros(len(bundle.files), bool)
    for block in read_table(bundle.table, _STAY_FIELDS):
        kind, stay = _parameters(block), _stay_of(bundle, block.row)
        is_id = kind == _RECORD_ID
        ids = np.where(is_id, block.ints("value"), -1)
        block.reject("no_patient", is_id & (ids < 0))
        found = np.flatnonzero(block.keep & is_id)
        stays, first = np.unique(stay[found], return_index=True)
        is_first = np.zeros(len(block), bool)
        for g, i in zip(stays.tolist(), found[first].tolist(), strict=True):
            if subjects[g] < 0:
                is_first[i], subjects[g], is_duplicate[g] = True, ids[i], int(ids[i]) in known
                known.add(int(ids[i]))
        block.reject("no_record_id", subjects[stay] < 0)
        block.reject("duplicate_stay", is_duplicate[stay])
        block.reject("duplicate_record_id", is_id & ~is_first)
        yield from _split(bundle, _events(block, kind, subjects[stay]))


def _stay_of(bundle: _Bundle, rows: np.ndarray) -> np.ndarray:
    """Which stay each row (counted from 1) of the table belongs to; of two that start at one row the first is empty."""
    return np.searchsorted(bundle.starts, rows - 1, side="right") - 1


def _split(bundle: _Bundle, batch: EventBatch) -> Iterator[EventBatch]:
    """A batch for each stay, its rows numbered within its file."""
    num_stays = len(bundle.files)
    stay = _stay_of(bundle, batch.row)
    order = np.argsort(stay, kind="stable")
    ends = np.cumsum(np.bincount(stay, minlength=num_stays))
    lost = {reason: (rows, _stay_of(bundle, rows)) for reason, rows in batch.quarantined.items()}
    has_rows = np.bincount(np.concatenate([stay, *(of for _, of in lost.values())]), minlength=num_stays) > 0
    columns = ("subject_id", "time", "code", "numeric_value", "visit_id", "row")
    for g in np.flatnonzero(has_rows).tolist():
        chosen = order[(ends[g - 1] if g else 0) : ends[g]]
        part = {name: getattr(batch, name)[chosen] for name in columns}
        quarantined = {
            reason: rows[of == g] - bundle.starts[g] for reason, (rows, of) in lost.items() if (of == g).any()
        }
        rows_read = len(np.unique(part["row"])) + sum(map(len, quarantined.values()))
        part["row"] = part["row"] - bundle.starts[g]
        yield batch._replace(file=bundle.files[g], rows_read=rows_read, quarantined=quarantined, **part)


def _events(block: Block, kind: np.ndarray, visit: np.ndarray) -> EventBatch:
    value, time = block.numbers("value"), _times(block, np.isin(kind, (_RECORD_ID, _AGE, _GENDER)))
    block.reject("not_a_number", np.isnan(value))
    block.reject("unknown_value", (value == -1) & (kind != _RECORD_ID))
    gender, unit = (_choice(kind == which, value - low, codes) for which, low, codes in _CHOICES)
    is_age = (kind == _AGE) & (value >= 0) & (value < 130)
    block.reject("impossible_value", (kind == _AGE) & ~is_age)
    block.reject("impossible_value", ((kind == _GENDER) & (gender < 0)) | ((kind == _UNIT) & (unit < 0)))
    birth = EPOCH - np.where(is_age, (value.astype(np.float64) + 0.5) * _YEAR, 0).astype(np.int64)

    def once(time: int, code: str) -> EventPart:
        times = np.where(kind == _RECORD_ID, time, STATIC_TIME)
        return code_at(times, code, visit)

    parts = [
        once(EPOCH, ENCOUNTER_PREFIX + VISIT_CLASS),
        once(EPOCH + WINDOW_HOURS * _HOUR, ENCOUNTER_END_PREFIX + VISIT_CLASS),
        code_at(np.where(is_age, birth, STATIC_TIME), BIRTH_CODE),
        EventPart(np.full(len(block), STATIC_TIME), gender, _GENDERS),
        EventPart(time, unit, _UNITS, visit_id=visit),
        EventPart(time, np.where(kind < len(_CODES), kind, -1).astype(np.int32), _CODES, value, visit),
    ]
    return block.events(visit, parts)


_CHOICES = ((_GENDER, 0, _GENDERS), (_UNIT, 1, _UNITS))


def _choice(mask: np.ndarray, index: np.ndarray, codes: list[str]) -> np.ndarray:
    """Index into `codes` (int32 [n]) where `mask` and the value is one of them, else -1."""
    is_one = mask & np.isin(index, np.arange(len(codes)))
    return np.where(is_one, index, -1).astype(np.int32)


def _parameters(block: Block) -> np.ndarray:
    """Number of each row's parameter in `_PARAMETERS`, -1 where rejected."""
    index, names = block.texts("parameter")
    numbers = np.array([*(_PARAMETERS.get(name.lower(), -1) for name in names), -1])
    kind = numbers[index]
    block.reject("unknown_parameter", kind < 0)
    return kind


def _times(block: Block, is_timeless: np.ndarray) -> np.ndarray:
    """Microseconds (int64 [n]) of HH:MM after admission; rejects others, and times after the window."""
    index, texts = block.texts("time")
    clocks = [_CLOCK.fullmatch(text) for text in texts]
    minutes = np.array([*(int(c[1]) * 60 + int(c[2]) if c else -1 for c in clocks), -1])[index]
    block.reject("unparseable_time", (minutes < 0) & ~is_timeless)
    block.reject("after_window", (minutes > WINDOW_HOURS * 60) & ~is_timeless)
    return EPOCH + minutes * (_HOUR // 60)


# Outcomes


def _read_outcomes(table: Table, stays: SortedIds, seen: SortedIds) -> Iterator[EventBatch]:
    for block in read_table(table, _OUTCOME_FIELDS):
        subject = stays.patients(block, "record_id")
        died = block.ints("died")
        block.reject("no_outcome", (died != 0) & (died != 1))
        seen.add_patients(block, "record_id")  # rejects a stay's second outcome
        after = np.full(len(block), EPOCH + OUTCOME_HOURS * _HOUR)
        parts = [EventPart(after, died.astype(np.int32), _OUTCOMES, died.astype(np.float32), subject)]
        for name, code in _SCORES.items():
            score = block.numbers(name)
            index = np.where(score >= 0, 0, -1).astype(np.int32)
            parts.append(EventPart(after, index, [f"OUTCOME//PHYSIONET2012//{code}"], score, subject))
        parts.append(code_at(_death(block, died, after), DEATH_CODE))
        yield block.events(subject, parts)


def _death(block: Block, died: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Microseconds; of who died in hospital on an unknown day the end of the stay. STATIC_TIME where none is known."""
    survival, stay = block.numbers("survival"), block.numbers("length_of_stay")
    days = np.where(survival >= 0, survival, np.where(died == 1, np.maximum(np.nan_to_num(stay), 0), -1))
    time = np.maximum(EPOCH + np.maximum(days, 0).astype(np.int64) * DAY, after)
    return np.where(days >= 0, time, STATIC_TIME)
