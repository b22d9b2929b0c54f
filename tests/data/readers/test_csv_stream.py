import codecs
import gzip
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data.readers import csv_stream


def read(raw: bytes, names=("a", "b")):
    """All rows as (row number, texts), the malformed rows' numbers, and whether bytes were replaced."""

    def locate(header):
        return {name: header.index(name) for name in names}

    rows, malformed, has_replaced = [], [], False
    for batch in csv_stream.stream_csv(io.BytesIO(raw), "set/x.csv", locate):
        texts = [batch.columns[name].to_pylist() for name in names] if batch.columns else [[], []]
        rows += zip(batch.row.tolist(), *texts, strict=True)
        malformed += batch.malformed.tolist()
        has_replaced |= batch.has_replaced
    return rows, malformed, has_replaced


@pytest.mark.parametrize("raw", [b"a,b\n", b"a,b", b"a,b\r\n", b"a,b\n\n\n", codecs.BOM_UTF8 + b"a,b\n"])
def test_header_alone(raw):
    assert read(raw) == ([], [], False)


@pytest.mark.parametrize("raw", [b"", b"\n\n", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_empty_file(raw):
    with pytest.raises(ValueError, match=r"set/x\.csv: is empty; expected a header"):
        read(raw)


def test_only_row_malformed():
    assert read(b"a,b\n1\n") == ([], [1], False)


def test_no_row_fits_the_header():
    with pytest.raises(ValueError, match=r"set/x\.csv: none of its 2 rows has the 2 columns"):
        read(b"a,b\n1,2,3\n4,5,6\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_malformed_rows_keep_their_numbers_and_blank_lines_none(end):
    raw = end.join(["a,b", "1,2", "", "3", "5,6", "7,8,9", ""]).encode()
    assert read(raw) == ([(1, "1", "2"), (3, "5", "6")], [2, 4], False)


@pytest.mark.parametrize("cut", ["3", "3,", '3,"fo', '"3', '"3,4'])
def test_file_cut_in_a_row(cut):
    raw = f"a,b,c\n1,2,x\n{cut}".encode()
    assert read(raw) == ([(1, "1", "2")], [2], False)


def test_file_cut_inside_its_last_quoted_field():
    assert read(b'a,b\n1,"2"\n3,"fo') == ([(1, "1", "2")], [2], False)
    assert read(b'a,b\n1,"2"\n3,"4"') == ([(1, "1", "2"), (2, "3", "4")], [], False)


def test_file_cut_inside_a_character():
    assert read("a,b,c\n1,2,3\n4,é".encode()[:-1])[:2] == ([(1, "1", "2")], [2])


def test_lines_swallowed_by_an_unclosed_quote_all_count():
    assert read(b'a,b,c\n1,2,3\n4,"5,6\n7,8,9\n1,1,1\n') == ([(1, "1", "2")], [2, 3, 4], False)


def test_quoted_newline_is_one_row():
    assert read(b'a,b\n1,"2\n2"\n3,4\n')[0] == [(1, "1", "2\n2"), (2, "3", "4")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_are_recognised(encoding):
    assert read("a,b\n1,Zoë\n".encode(encoding)) == ([(1, "1", "Zoë")], [], False)


def test_bytes_that_are_no_utf8_are_marked():
    rows, malformed, has_replaced = read("a,b\n1,Zoë\n2\n".encode("latin-1"))
    assert (rows, malformed, has_replaced) == ([(1, "1", "Zo\ufffd")], [2], True)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters(delimiter):
    assert read(delimiter.join(["a", "b\n1", "x,y\n"]).encode())[0] == [(1, "1", "x,y")]


def test_bare_quotes_in_tab_separated_files():
    assert read(b'a\tb\n1\t"half\n2\t3\n')[0] == [(1, "1", '"half'), (2, "2", "3")]


def test_repeated_header_names_read_the_first():
    assert read(b"a,b,a\n1,2,3\n")[0] == [(1, "1", "2")]


def test_gzip_whole_and_in_members():
    assert read(gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n"))[0] == [(1, "1", "2"), (2, "3", "4")]


def test_truncated_gzip_names_the_file():
    raw = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(5000)))
    for cut in (20, len(raw) // 2, len(raw) - 4):
        with pytest.raises(ValueError, match=r"set/x\.csv: cannot be read to its end .*fetch it again"):
            read(raw[:cut])


def test_row_longer_than_a_block_names_the_cause(monkeypatch):
    monkeypatch.setattr(csv_stream, "_BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(csv_stream, "_HEADER_BYTES", 1 << 12)
    with pytest.raises(ValueError, match="never closed"):
        read(b'a,b\n1,"2\n' + b"3,4\n" * 5000)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rows_and_numbers_hold_at_any_block_size(data):
    """Blocks so small that every boundary falls somewhere: in rows, in characters, between malformed rows."""
    lines = data.draw(
        st.lists(st.sampled_from(["é,ß€", "1,😀", "x", "a,b,c", "long,value of many letters"]), max_size=80)
    )
    block, header = data.draw(st.integers(64, 200)), data.draw(st.integers(1, 80))
    expected = [(i, *line.split(",")) for i, line in enumerate(lines, 1) if line.count(",") == 1]
    malformed = [i for i, line in enumerate(lines, 1) if line.count(",") != 1]
    if not expected and len(malformed) > 1:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_stream, "_BLOCK_BYTES", block)
        patch.setattr(csv_stream, "_HEADER_BYTES", header)
        assert read("\n".join(["a,b", *lines]).encode()) == (expected, malformed, False)


def test_tail_check_does_not_lose_an_already_malformed_row():
    rows, skipped = csv_stream._RowNumbers().place(2, is_last=True)
    assert rows.tolist() == [1, 2] and skipped.dtype == np.int64 and not len(skipped)
    assert read(b'a,b\n1,2\n3,4,"5') == ([(1, "1", "2")], [2], False)
