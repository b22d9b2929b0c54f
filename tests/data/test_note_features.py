"""Features of notes: what is stated of the patient now counts, and nothing else does."""

import numpy as np
import pyarrow as pa
import pytest

from ehrjax.data.note_features import (
    PRESENT,
    compile_lexicon,
    count_features,
    default_lexicon,
    find_mentions,
    row_features,
)
from ehrjax.data.notes import make_notes, notes_until


def contexts(text):
    return {m.feature.split(": ")[1]: m.context for m in find_mentions(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" \n\n \n", {}),
        ("胸痛はありません。 Fièvre et toux. 🤒", {}),
        ("Fever.", {"fever": PRESENT}),
        ("No fever.", {"fever": "negated"}),
        ("Denies fever, wheezing, or cough.", {"fever": "negated", "wheezing": "negated", "cough": "negated"}),
        ("No fever but has cough.", {"fever": "negated", "cough": PRESENT}),
        ("Denies fever; cough for two days.", {"fever": "negated", "cough": PRESENT}),
        ("Without fever. Cough.", {"fever": "negated", "cough": PRESENT}),
        ("No fever however he reports cough", {"fever": "negated", "cough": PRESENT}),
        ("Fever, no cough", {"fever": PRESENT, "cough": "negated"}),
        ("Fever: none. Cough: yes.", {"fever": "negated", "cough": PRESENT}),
        ("Constitutional: denies fever.", {"fever": "negated"}),
        ("Pulmonary embolism and sepsis were ruled out.", {"sepsis": "negated"}),
        ("Denies fever,\nchills", {"fever": "negated", "chills or sweats": "negated"}),
        ("No fever\nCough", {"fever": "negated", "cough": PRESENT}),
        ("Denies\r\n\r\nCough", {"cough": PRESENT}),
        ("Mother had seizures. He has a cough.", {"seizure": "family", "cough": PRESENT}),
        ("Mother reports fever.", {"fever": PRESENT}),
        ("Mother denies fever.", {"fever": "negated"}),
        ("FAMILY HISTORY: Seizures.\nRash.\n\nCough.", {"seizure": "family", "rash": "family", "cough": PRESENT}),
        ("Return if fever or chest pain.", {"fever": "hypothetical", "chest pain": "hypothetical"}),
        ("Tylenol p.r.n. for headache.", {"analgesic": PRESENT, "headache": "hypothetical"}),
        ("History of seizures.", {"seizure": "historical"}),
        ("Three day history of fever.", {"fever": PRESENT}),
        ("Allergies: penicillin", {"antibiotic": "allergy"}),
        ("Allergic to morphine, on vancomycin.", {"opioid": "allergy", "antibiotic": "allergy"}),
        ("No acute distress, alert.", {"stable or improving": PRESENT, "alert and oriented": PRESENT}),
        ("Sepsis cannot be ruled out.", {"sepsis": PRESENT}),
        ("Pt desatted", {}),
        ("N/V, on 4 L nasal cannula", {"nausea or vomiting": PRESENT, "supplemental oxygen": PRESENT}),
        ("Denies " + "ear pain, " * 18 + "or cough.", {"other pain": "negated", "cough": "negated"}),
    ],
)  # fmt: skip
def test_context_of_a_mention(text, expected):
    assert contexts(text) == expected


def test_a_scope_never_crosses_into_the_next_note():
    counts = count_features(["Patient denies", "fever", "", "Fever and no"])
    at = counts.names.index("symptom: fever")
    assert counts.present[:, at].tolist() == [0, 1, 0, 1]
    assert counts.denied.sum() == 0


def test_counts_and_their_shapes():
    counts = count_features(["Cough, worse cough, no fever.", "nothing to see"])
    present = dict(zip(counts.names, counts.present[0].tolist(), strict=True))
    assert present["symptom: cough"] == 2 and present["deterioration: worsening"] == 1
    assert counts.denied[0].sum() == 1 and not counts.present[1].any()
    empty = count_features([])
    assert empty.present.shape == empty.denied.shape == (0, len(empty.names))


def test_batches_and_chunks_change_nothing(monkeypatch):
    texts = [f"{'No' if i % 3 else 'Has'} fever. Cough {i}." for i in range(23)]
    whole = count_features(texts)
    monkeypatch.setattr("ehrjax.data.note_features._BATCH_NOTES", 4)
    chunked = count_features(pa.chunked_array([texts[:5], [], texts[5:]], pa.large_string()))
    for name in ("present", "denied"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(chunked, name))


def test_the_longest_phrase_counts_once():
    assert contexts("Chest pain.") == {"chest pain": PRESENT}
    assert [m.phrase for m in find_mentions("Increased work of breathing")] == ["increased work of breathing"]


def test_a_hostile_note_takes_no_longer_than_its_length():
    text = "no " * 20_000 + "fever " * 20_000 + "((((" * 5000
    counts = count_features([text])
    assert counts.present.sum() + counts.denied.sum() == 20_000


def test_own_lexicon_and_its_faults():
    lexicon = compile_lexicon({"line": {"drain": ("jp|surgical drain",)}})
    counts = count_features(["JP drain in place.", "No JP drain."], lexicon=lexicon)
    assert counts.names == ("line: drain",)
    assert counts.present.tolist() == [[1], [0]] and counts.denied.tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="'cough' is a phrase of 'a: x' and 'a: y'"):
        compile_lexicon({"a": {"x": ("cough",), "y": ("cough",)}})
    with pytest.raises(ValueError, match="comma after a single one"):
        compile_lexicon({"a": {"x": "cough"}})


def test_names_are_unique_and_readable():
    names = default_lexicon().names
    assert len(set(names)) == len(names)
    assert all(name.replace(":", "").replace("-", "").replace(" ", "").isalpha() for name in names)


def test_rows_see_only_notes_until_their_index():
    texts = ["Fever.", "No fever.", "Fever and cough."]
    notes = make_notes(np.array([1, 1, 1]), np.array([0, 10, 20]) * 1_000_000, texts)
    join = notes_until(notes, np.array([1, 1, 2]), np.array([10, 19, 20]))
    values, names = row_features(join, count_features(notes))
    column = {name: values[:, i].tolist() for i, name in enumerate(names)}
    assert column["number of notes"] == [2, 2, 0]
    assert column["symptom: fever"] == [1, 1, 0] and column["symptom: fever (denied)"] == [1, 1, 0]
    assert column["symptom: cough"] == [0, 0, 0]
    assert values.dtype == np.float32 and values.shape == (3, len(names))


def test_real_notes_are_read(shared_data):
    """Section notes and full notes of other hands: most say something, and some of it is denied."""
    pd = pytest.importorskip("pandas", reason="pandas reads the notes")
    files = [
        shared_data / "notes/mtsdialog/MTS-Dialog-ValidationSet.csv.gz",
        shared_data / "notes/acibench/valid.csv.gz",
    ]
    if not all(file.is_file() for file in files):
        pytest.skip("shared_data has no notes")
    sections, full = pd.read_csv(files[0])["section_text"], pd.read_csv(files[1])["note"]
    counts = count_features([*sections, *full])
    says = counts.present.sum(axis=1) > 0
    assert says[len(sections) :].all() and says.mean() > 0.4
    assert 0.1 < counts.denied.sum() / (counts.present.sum() + counts.denied.sum()) < 0.5
