"""PhysioNet 2012 reader: what a stay becomes, where its outcome stands, and what is refused."""

import gzip
import io
import os
import tarfile
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from ehrjax.data.build import build_store
from ehrjax.data.cohorts import make_labels
from ehrjax.data.readers.physionet2012 import EPOCH, read_physionet2012
from ehrjax.data.sequences import build_visit_sequences
from ehrjax.data.vocab import fit_vocabulary
from tests.data.readers.helpers import collect, write_table

STATICS = "00:00,RecordID,{id}\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n00:00,Weight,80.5\n"
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"


def stay(number, rows=""):
    return "Time,Parameter,Value\n" + STATICS.format(id=number) + rows


def write_archive(path, members, *, cut=None):
    """A .tar.gz of name -> text; `cut` keeps that share of its bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    data = packed.getvalue()
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])


def read(folder):
    events, lost, _ = collect(read_physionet2012(folder))
    return events, lost


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(read_physionet2012(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no stay \(like 132539\.txt\).*found nothing"):
        list(read_physionet2012(tmp_path))
    write_table(tmp_path / "Outcomes-a.txt", OUTCOMES)
    with pytest.raises(FileNotFoundError, match=r"found Outcomes-a\.txt"):
        list(read_physionet2012(tmp_path))
    write_archive(tmp_path / "set-a.tar.gz", {"set-a/README.txt": "nothing"})
    with pytest.raises(FileNotFoundError, match="an archive without stays"):
        list(read_physionet2012(tmp_path / "set-a.tar.gz"))


def test_empty_file_and_missing_column_are_named(tmp_path):
    (tmp_path / "set" / "set-a").mkdir(parents=True)
    (tmp_path / "set" / "set-a" / "7.txt").write_text("")
    with pytest.raises(ValueError, match=r"set/set-a/7\.txt: is empty"):
        list(read_physionet2012(tmp_path / "set"))
    (tmp_path / "set" / "set-a" / "7.txt").write_text("Time,Value\n00:00,7\n")
    with pytest.raises(ValueError, match=r"set/set-a/7\.txt: no column Parameter"):
        list(read_physionet2012(tmp_path / "set"))
    (tmp_path / "set" / "set-a" / "7.txt").write_text("Time,Parameter,Value\n00:00,HR,70\n00:01,HR,71\n")
    with pytest.raises(ValueError, match="no stay has a RecordID"):
        list(read_physionet2012(tmp_path / "set"))


@pytest.mark.parametrize("cut", [0.01, 0.5, 0.9, 0.995])
def test_cut_archive_is_named(tmp_path, cut):
    rng = np.random.default_rng(0)
    rows = {f"set-a/{i}.txt": stay(i, "".join(f"01:00,HR,{v}\n" for v in rng.normal(size=99))) for i in range(1, 9)}
    write_archive(tmp_path / "set-a.tar.gz", rows, cut=cut)
    with pytest.raises(ValueError, match=r"set-a\.tar\.gz: cannot be read to its end"):
        list(read_physionet2012(tmp_path))


def test_a_stay_becomes_events(tmp_path):
    write_table(tmp_path / "set" / "set-a" / "7.txt", stay(7, "00:07,HR,73\n33:08,hct,33.7\n48:00,Temp,35.1\n"))
    events, lost = read(tmp_path / "set")
    assert {e[0] for e in events} == {"set-a/7.txt"} and {e[1] for e in events} == {7}
    assert sorted((e[3], e[2], e[4], e[5]) for e in events) == [
        ("ENCOUNTER//icu_first_48h", "2012-01-01T00:00:00", None, 7),
        ("ENCOUNTER_END//icu_first_48h", "2012-01-03T00:00:00", None, 7),
        ("GENDER//F", None, None, -1),
        ("ICU_ADMISSION//Surgical Intensive Care Unit (SICU)", "2012-01-01T00:00:00", None, 7),
        ("LAB//PHYSIONET2012//HCT", "2012-01-02T09:08:00", 33.7, 7),
        ("MEDS_BIRTH", "1957-07-01T21:00:00", None, -1),
        ("VITAL//PHYSIONET2012//HR", "2012-01-01T00:07:00", 73.0, 7),
        ("VITAL//PHYSIONET2012//Temp", "2012-01-03T00:00:00", 35.1, 7),
        ("VITAL//PHYSIONET2012//Weight", "2012-01-01T00:00:00", 80.5, 7),
    ]
    assert lost == [("set-a/7.txt", "unknown_value", 4)]


def test_rows_that_cannot_be_used(tmp_path):
    rows = """00:10,HR,fast
    00:10,HR,
    00:10,Blood,5
    00:10,,5
    0010,HR,70
    ,HR,70
    00:61,HR,70
    48:01,HR,70
    00:10,HR
    00:10,RecordID,9
    00:10,Gender,2
    00:10,ICUType,5
    00:10,Age,400
    00:10,HR,1e400
    00:10,HR,-1
    00:10,HR,-5
    """
    write_table(tmp_path / "set" / "7.txt", stay(7, rows))
    write_table(tmp_path / "set" / "8.txt", "Time,Parameter,Value\n00:00,RecordID,x\n00:10,HR,70")
    write_table(tmp_path / "set" / "old" / "7.txt", stay(7, "00:10,HR,70"))
    events, lost = read(tmp_path / "set")
    assert [(row - 6, reason) for file, reason, row in sorted(lost, key=lambda q: q[2]) if file == "7.txt"][1:] == [
        (1, "not_a_number"),
        (2, "not_a_number"),
        (3, "unknown_parameter"),
        (4, "unknown_parameter"),
        (5, "unparseable_time"),
        (6, "unparseable_time"),
        (7, "unparseable_time"),
        (8, "after_window"),
        (9, "malformed_row"),
        (10, "duplicate_record_id"),
        (11, "impossible_value"),
        (12, "impossible_value"),
        (13, "impossible_value"),
        (14, "not_a_number"),
        (15, "unknown_value"),
    ]
    assert Counter(q[1] for q in lost if q[0] == "8.txt") == {"no_patient": 1, "no_record_id": 1}
    assert Counter(q[1] for q in lost if q[0] == "old/7.txt") == {"duplicate_stay": 7}
    assert [e[4] for e in events if e[3].endswith("//HR")] == [-5.0]  # plausibility is judged later


@pytest.mark.parametrize("bundle_bytes", [300, 1 << 20])
def test_files_read_as_one_table_are_as_those_read_alone(tmp_path, monkeypatch, bundle_bytes):
    header, long = "Time,Parameter,Value\n", "".join(f"{i // 60:02}:{i % 60:02},HR,{i % 90}\n" for i in range(2880))
    texts = [
        stay(3, "00:07,HR,73\n00:08,HR,fast\n"),
        header,  # no row at all
        header + "00:00,RecordID,4\n",
        stay(5, "00:07,HR,73"),  # the last line without its end
        stay(6, "00:07,HR,73\n").replace("\n", "\r\n"),
        stay(7, "00:07,HR\n00:08,HR,1,2\n00:09,HR,70\n"),
        stay(3, "00:07,HR,73\n"),  # twice
        stay(8, '00:07,"HR",73\n\n00:08,HR,74\n'),
        "Parameter,Time,Value\nRecordID,00:00,9\nHR,00:09,75\n",
        header + "00:07,HR,70\n00:00,RecordID,10\n00:08,HR,70\n",
        "\ufeff" + stay(11, "00:07,Blüte,73\n"),
        stay(12, long),
        stay(13, "00:07,HR,73\n00:09,RecordID,3\n"),
    ]
    for i, text in enumerate(texts):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{i + 10}.txt").write_bytes(text.encode())
    monkeypatch.setattr("ehrjax.data.readers.physionet2012._BUNDLE_BYTES", 0)  # each alone
    alone = read(tmp_path / "set")
    assert {e[1] for e in alone[0]} == set(range(3, 14)) and len({q[1] for q in alone[1]}) >= 6
    monkeypatch.setattr("ehrjax.data.readers.physionet2012._BUNDLE_BYTES", bundle_bytes)
    together = read(tmp_path / "set")
    assert all(sorted(a, key=str) == sorted(b, key=str) for a, b in zip(alone, together, strict=True))


def test_archives_and_folders_give_the_same_events(tmp_path):
    stays = {f"set-a/{i}.txt": stay(i, f"00:07,HR,{60 + i}\n") for i in (7, 8)}
    for name, text in stays.items():
        write_table(tmp_path / "folder" / name, text)
    (tmp_path / "packed").mkdir()
    write_archive(tmp_path / "packed" / "set-a.tar.gz", stays | {"set-a/._7.txt": "junk", "set-a/notes.md": "x"})
    for root in ("folder", "packed"):
        write_table(tmp_path / root / "Outcomes-a.txt", OUTCOMES + "7,1,2,5,-1,0")
    unpacked, packed = read(tmp_path / "folder"), read(tmp_path / "packed")
    assert [e[1:] for e in unpacked[0]] == [e[1:] for e in packed[0]]
    assert packed[0][0][0] == "set-a.tar.gz/7.txt"
    # A single set, with the outcomes of its letter beside it.
    write_table(tmp_path / "packed" / "Outcomes-b.txt", OUTCOMES + "9,1,2,5,-1,0")
    for one in (tmp_path / "packed" / "set-a.tar.gz", tmp_path / "folder" / "set-a"):
        events, lost = read(one)
        assert [e[1:] for e in events] == [e[1:] for e in packed[0]]
        assert {q[1] for q in lost} == {"unknown_value"}


def test_member_paths_are_not_trusted(tmp_path):
    (tmp_path / "set").mkdir()
    members = {"../../7.txt": stay(7), "/etc/8.txt": stay(8)}
    write_archive(tmp_path / "set" / "set-a.tar.gz", members)
    with gzip.open(tmp_path / "set" / "set-b.tar.gz", "wb") as out, tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("9.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    events, _ = read(tmp_path / "set")
    assert {e[0] for e in events} == {"set-a.tar.gz/7.txt", "set-a.tar.gz/8.txt"}
    assert sorted(tmp_path.rglob("*")) == before


def test_huge_member_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ehrjax.data.readers.physionet2012._MAX_STAY_BYTES", 100)
    write_archive(tmp_path / "set-a.tar.gz", {"7.txt": stay(7)})
    with pytest.raises(ValueError, match=r"set-a\.tar\.gz/7\.txt: .* too many for a stay"):
        list(read_physionet2012(tmp_path))


def write_outcomes(tmp_path):
    for i in (1, 2, 3, 4, 5, 6):
        write_table(tmp_path / "set" / "set-a" / f"{i}.txt", stay(i, "00:07,HR,73\n" if i != 4 else ""))
    outcomes = """
        1,6,1,5,-1,0
        2,16,8,8,1,1
        3,-1,-1,-1,-1,1
        9,6,1,5,-1,0
        2,16,8,8,5,0
        4,6,1,5,400,0
        5,6,1,5,,unknown
    """
    write_table(tmp_path / "set" / "Outcomes-a.txt", OUTCOMES + outcomes)
    return tmp_path / "set"


def test_outcomes_stand_after_the_window(tmp_path):
    events, lost = read(write_outcomes(tmp_path))
    outcome = "OUTCOME//PHYSIONET2012//"
    after = [e for e in events if e[0] == "Outcomes-a.txt"]
    assert min(e[2] for e in after) == "2012-01-03T01:00:00"
    assert [
        (e[1], e[2], e[3], e[4]) for e in after if e[3].startswith(("MEDS_DEATH", outcome + "IN_", outcome + "D"))
    ] == [
        (1, "2012-01-03T01:00:00", outcome + "DISCHARGED_ALIVE", 0.0),
        (2, "2012-01-03T01:00:00", outcome + "IN_HOSPITAL_DEATH", 1.0),
        (3, "2012-01-03T01:00:00", outcome + "IN_HOSPITAL_DEATH", 1.0),
        (4, "2012-01-03T01:00:00", outcome + "DISCHARGED_ALIVE", 0.0),
        (2, "2012-01-03T01:00:00", "MEDS_DEATH", None),
        (3, "2012-01-03T01:00:00", "MEDS_DEATH", None),
        (4, "2013-02-04T00:00:00", "MEDS_DEATH", None),
    ]
    assert {(e[1], e[3].removeprefix(outcome), e[4]) for e in after if e[1] == 1} == {
        (1, "DISCHARGED_ALIVE", 0.0), (1, "LENGTH_OF_STAY", 5.0), (1, "SAPS_I", 6.0), (1, "SOFA", 1.0),
    }  # fmt: skip
    assert sorted((row, reason) for file, reason, row in lost if file == "Outcomes-a.txt") == [
        (4, "unknown_patient"),
        (5, "duplicate_patient"),
        (7, "no_outcome"),
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_an_edited_outcome_of_a_single_set_is_read_again(tmp_path, packed):
    source, outcomes = tmp_path / ("set-a.tar.gz" if packed else "set-a"), tmp_path / "Outcomes-a.txt"
    stays = {f"set-a/{i}.txt": stay(i, "00:07,HR,73\n") for i in (1, 2)}
    if packed:
        write_archive(source, stays)
    else:
        for name, text in stays.items():
            write_table(tmp_path / name, text)
    for died in (0, 1):
        write_table(outcomes, OUTCOMES + f"1,6,1,5,-1,{died}\n2,6,1,5,-1,1")
        os.utime(outcomes, ns=(died, died))
        store = build_store("physionet2012", source, tmp_path / "store")
        assert make_labels(store, "in_hospital_death_48h").values[:, 0].tolist() == [died, 1]


def test_the_task_labels_every_stay_with_an_outcome_and_no_model_sees_it(tmp_path):
    store = build_store("physionet2012", write_outcomes(tmp_path), tmp_path / "store")
    assert store.report["num_patients"] == store.report["num_visits"] == 6
    assert store.report["rows_read"] == store.report["rows_kept"] + store.report["rows_quarantined"]
    labels = make_labels(store, "in_hospital_death_48h")
    assert labels.subject_ids.tolist() == [1, 2, 3, 4] and labels.values[:, 0].tolist() == [0, 1, 1, 0]
    assert (labels.times == EPOCH // 1_000_000 + 48 * 3600).all()
    assert labels.flow["censored"] == 2  # no outcome; stay 4, without any measurement, has a label
    vocab = fit_vocabulary(store, store.subject_ids, min_count=1)
    seen = {vocab.tokens[i] for i in build_visit_sequences(store, vocab, labels).codes}
    assert "VITAL//PHYSIONET2012//HR" in seen and any(token.startswith("OUTCOME") for token in vocab.tokens)
    assert not any(token.startswith("OUTCOME") for token in seen)


def test_real_sets(shared_data):
    folder = shared_data / "physionet2012"
    if not folder.is_dir():
        pytest.skip("physionet2012 is not among the real data sets")
    stream, subjects = read_physionet2012(folder), []
    for _, batch in zip(range(60), stream, strict=False):
        assert not set(batch.quarantined) - {"unknown_value"}
        assert len(np.unique(batch.subject_id)) == 1 and batch.time.max() <= EPOCH + 48 * 3600 * 1_000_000
        subjects.append(int(batch.subject_id[0]))
    assert len([*groupby(subjects)]) == len(set(subjects)) > 50  # one stay after another
    stream.close()
