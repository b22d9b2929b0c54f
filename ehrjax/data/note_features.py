"""Interpretable features of clinical notes: how often each symptom, drug or sign is stated of the patient, or denied.

A lexicon of phrases with the scope rule of NegEx (Chapman et al., 2001, J Biomed Inform 34:301): a context phrase such
as "denies" rules out the mentions that follow it up to the end of the sentence or a word such as "but". Mentions of
relatives, of what might happen, of the past and of allergies count neither as present nor as denied. All notes of a
batch are handled at once, as one array of word numbers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, product, repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from ehrjax.data import note_lexicon
from ehrjax.data.notes import NoteJoin, Notes, sum_rows

# Where several contexts hold, the first of these counts: "mother has no cough" tells of the mother.
CONTEXTS = ("family", "allergy", "hypothetical", "negated", "historical")
PRESENT = "present"
# Words. A review of systems denies two dozen symptoms in one sentence; what follows a mention is less sure to be of it.
_MAX_FORWARD, _MAX_BACKWARD, _MAX_HEADER = 80, 4, 6
_BATCH_NOTES = 2000
_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*|(?:[a-z]\.){2,}|(?:dr|mrs?|ms)\.|[^\W\d_]\w*(?:'[a-z]+)?|\n\s*\n\s*|\n|[.;?!,:/()%+-]"
)
_SOFT_WRAP = re.compile(r"\n(?=[ \t]*[a-z])")  # a line that goes on in lower case goes on with the sentence
_BOUNDARY, _PARAGRAPH = "\0", "\n\n"
_SENTENCE_ENDS = (".", ";", "?", "!", "\n", _PARAGRAPH, _BOUNDARY)


class FeatureCounts(NamedTuple):
    """Mentions of each feature in each note (n notes, F features)."""

    names: tuple[str, ...]  # "group: feature"
    present: Int[np.ndarray, "n F"]
    denied: Int[np.ndarray, "n F"]


class Mention(NamedTuple):
    """A mention as `find_mentions` shows it."""

    feature: str
    context: str  # PRESENT or one of CONTEXTS
    phrase: str
    around: str  # the words before and after


@dataclass(frozen=True)
class Lexicon:
    """Compiled phrases: a trie over word numbers as sorted transitions, and what each phrase means."""

    names: tuple[str, ...]
    words: dict[str, int]  # 0 stands for every other word
    transitions: Int[np.ndarray, "num_states"]  # state * num_words + word, sorted; its rank + 1 is the next state
    phrase_of_state: Int[np.ndarray, "num_states+1"]  # -1 where no phrase ends
    feature: Int[np.ndarray, "num_phrases"]  # -1 where the phrase is no feature
    is_terminator: np.ndarray  # bool [num_phrases]
    forward: dict[str, np.ndarray]  # context -> bool [num_phrases]
    backward: dict[str, np.ndarray]
    section: dict[str, np.ndarray]


def count_features(texts: Iterable[str] | pa.ChunkedArray | Notes, *, lexicon: Lexicon | None = None) -> FeatureCounts:
    """Counts of present and denied mentions in each text; of `Notes`, in each note, with a repeated text read once."""
    lexicon = lexicon or default_lexicon()
    if isinstance(texts, Notes):
        counts = count_features(texts.texts, lexicon=lexicon)
        return FeatureCounts(counts.names, counts.present[texts.text_ids], counts.denied[texts.text_ids])
    if isinstance(texts, pa.ChunkedArray):
        texts = chain.from_iterable(batch.to_pylist() for batch in _slices(texts))
    texts = iter(texts)
    present, denied = [], []
    while batch := list(islice(texts, _BATCH_NOTES)):
        found = _find(batch, lexicon)
        present.append(_count(found, -1, len(batch), len(lexicon.names)))
        denied.append(_count(found, CONTEXTS.index("negated"), len(batch), len(lexicon.names)))
    nothing = np.zeros((0, len(lexicon.names)), np.int32)
    return FeatureCounts(lexicon.names, np.concatenate([nothing, *present]), np.concatenate([nothing, *denied]))


def row_features(join: NoteJoin, counts: FeatureCounts) -> tuple[Float[np.ndarray, "M P"], tuple[str, ...]]:
    """Features of each index row, summed over its notes, and their names: number of notes, present, denied.

    `counts` has a row for each note that the join was made of.
    """
    num_notes = np.diff(join.offsets)[:, None]
    sums = [sum_rows(join.offsets, join.rows, each) for each in (counts.present, counts.denied)]
    names = ("number of notes", *counts.names, *(f"{name} (denied)" for name in counts.names))
    return np.concatenate([num_notes, *sums], axis=1).astype(np.float32), names


def find_mentions(text: str, *, lexicon: Lexicon | None = None) -> list[Mention]:
    """Every mention in a text with its context, in order: what the counts are made of, for a reader to check."""
    lexicon = lexicon or default_lexicon()
    found, tokens = _find([text], lexicon), _tokens(text)
    mentions = []
    for start, end, feature, context in zip(found.start, found.end, found.feature, found.context, strict=True):
        around = " ".join(tokens[max(0, start - 12) : end + 8]).replace("\n", "|")
        name = PRESENT if context < 0 else CONTEXTS[context]
        mentions.append(Mention(lexicon.names[feature], name, " ".join(tokens[start:end]), around))
    return mentions


# Compiling


@lru_cache(maxsize=1)
def default_lexicon() -> Lexicon:
    """The lexicon of `note_lexicon`."""
    return compile_lexicon(note_lexicon.FEATURES)


def compile_lexicon(features: Mapping[str, Mapping[str, Sequence[str]]]) -> Lexicon:
    """A lexicon of your features (group -> feature -> phrases, as in `note_lexicon.FEATURES`) with our context rules.

    Raises ValueError for a phrase that two features share.
    """
    named = {f"{group}: {name}": phrases for group, own in features.items() for name, phrases in own.items()}
    feature_of = _feature_phrases(named)
    rules = {
        "forward": note_lexicon.FORWARD,
        "backward": note_lexicon.BACKWARD,
        "section": note_lexicon.SECTIONS,
    }
    expanded = {kind: {c: _expand_all(phrases) for c, phrases in own.items()} for kind, own in rules.items()}
    terminators, pseudo = _expand_all(note_lexicon.TERMINATORS), _expand_all(note_lexicon.PSEUDO)
    others = chain.from_iterable(chain.from_iterable(own.values()) for own in expanded.values())
    phrases = list(dict.fromkeys(chain(feature_of, terminators, pseudo, others)))
    words = {word: i + 1 for i, word in enumerate(sorted({*_SENTENCE_ENDS, ":", *chain.from_iterable(phrases)}))}
    transitions, phrase_of_state = _make_trie(phrases, words)
    # "p.r.n." is "prn".
    words = {".".join(word) + ".": i for word, i in words.items() if 1 < len(word) <= 4 and word.isalpha()} | words

    def among(some: Iterable[tuple[str, ...]]) -> np.ndarray:
        some = set(some)
        return np.array([phrase in some for phrase in phrases], bool)

    return Lexicon(
        names=tuple(named),
        words=words,
        transitions=transitions,
        phrase_of_state=phrase_of_state,
        feature=np.array([feature_of.get(phrase, -1) for phrase in phrases], np.int64),
        is_terminator=among(terminators),
        **{kind: {c: among(own.get(c, ())) for c in CONTEXTS} for kind, own in expanded.items()},
    )


def _feature_phrases(named: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], int]:
    feature_of: dict[tuple[str, ...], int] = {}
    for number, (name, phrases) in enumerate(named.items()):
        for phrase in _expand_all(phrases):
            other = feature_of.setdefault(phrase, number)
            if other != number:
                raise ValueError(
                    f"{' '.join(phrase)!r} is a phrase of {list(named)[other]!r} and {name!r}: choose one."
                )
    return feature_of


def _expand_all(phrases: Iterable[str]) -> list[tuple[str, ...]]:
    """All readings of phrases with alternatives and optional words.

    >>> _expand_all(["chest pain|ache", "the? icu"])
    [('chest', 'pain'), ('chest', 'ache'), ('the', 'icu'), ('icu',)]
    """
    if isinstance(phrases, str):
        raise ValueError(f"phrases={phrases!r} is one text: give a tuple of phrases, with a comma after a single one.")
    readings = []
    for phrase in phrases:
        choices = []
        for word in phrase.split(" "):
            is_optional = len(word) > 1 and word.endswith("?")
            choices.append([*word.removesuffix("?").split("|"), ""] if is_optional else word.split("|"))
        readings += [tuple(filter(None, reading)) for reading in product(*choices)]
    return list(dict.fromkeys(reading for reading in readings if reading))


def _make_trie(phrases: Sequence[tuple[str, ...]], words: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """States in order of depth, so that a state's number is known before its transitions are."""
    width = len(words) + 1
    state_of: dict[tuple[str, ...], int] = {(): 0}
    prefixes = {phrase[:depth] for phrase in phrases for depth in range(1, len(phrase) + 1)}
    keys: list[int] = []
    for depth in range(1, max(map(len, phrases)) + 1):
        level = [(state_of[p[:-1]] * width + words[p[-1]], p) for p in prefixes if len(p) == depth]
        for key, prefix in sorted(level):
            keys.append(key)
            state_of[prefix] = len(keys)
    phrase_of_state = np.full(len(keys) + 1, -1, np.int64)
    for i, phrase in enumerate(phrases):
        phrase_of_state[state_of[phrase]] = i
    return np.array(keys, np.int64), phrase_of_state


# Finding


class _Found(NamedTuple):
    """Mentions of features: token span, note, feature and context (-1 = present)."""

    start: np.ndarray
    end: np.ndarray
    note: np.ndarray
    feature: np.ndarray
    context: np.ndarray


def _tokens(text: str) -> list[str]:
    text = text.replace("\r\n", "\n").replace("’", "'")
    tokens = _TOKEN.findall(_SOFT_WRAP.sub(" ", text).lower())
    return [_PARAGRAPH if token[0] == "\n" and len(token) > 1 else token for token in tokens]


def _find(texts: Sequence[str], lexicon: Lexicon) -> _Found:
    per_note = [_tokens(text) for text in texts]
    stream = chain.from_iterable(chain(tokens, (_BOUNDARY,)) for tokens in per_note)
    words = np.fromiter(map(lexicon.words.get, stream, repeat(0)), np.int64)
    note_ends = np.cumsum([len(tokens) + 1 for tokens in per_note])
    start, end, phrase = _match(words, lexicon)
    is_feature = lexicon.feature[phrase] >= 0
    context = _contexts(words, start, end, phrase, is_feature, lexicon)
    note = np.searchsorted(note_ends, start[is_feature], side="right")
    return _Found(start[is_feature], end[is_feature], note, lexicon.feature[phrase[is_feature]], context)


def _match(words: np.ndarray, lexicon: Lexicon) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end and phrase of the matches: from left to right, at each place the longest, none overlapping."""
    width = max(lexicon.words.values()) + 1
    padded = np.append(words, 0)
    longest, matched = np.zeros(len(words), np.int64), np.full(len(words), -1)
    at, state, depth = np.flatnonzero(words), np.zeros(int((words > 0).sum()), np.int64), 0
    while len(at):
        keys = state * width + padded[np.minimum(at + depth, len(words))]
        rank = np.minimum(np.searchsorted(lexicon.transitions, keys), len(lexicon.transitions) - 1)
        goes_on = lexicon.transitions[rank] == keys
        at, state, depth = at[goes_on], rank[goes_on] + 1, depth + 1
        phrase = lexicon.phrase_of_state[state]
        ends = phrase >= 0
        longest[at[ends]], matched[at[ends]] = depth, phrase[ends]
    start = np.flatnonzero(longest)
    start = start[_without_overlap(start.tolist(), longest[start].tolist())]
    return start, start + longest[start], matched[start]


def _without_overlap(starts: list[int], lengths: list[int]) -> np.ndarray:
    keep, end = [], 0
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start >= end:
            keep.append(i)
            end = start + length
    return np.array(keep, np.int64)


def _contexts(words, start, end, phrase, is_feature, lexicon: Lexicon) -> np.ndarray:
    """Context (int64, -1 = present) of each mention: the first of CONTEXTS whose scope it is in."""
    stops = np.isin(words, [lexicon.words[word] for word in _SENTENCE_ENDS])
    headers = _section_starts(words, stops, lexicon)
    is_stop = lexicon.is_terminator[phrase]
    stops[start[is_stop]] = True
    first, last = start[is_feature], end[is_feature]
    stop_before, stop_after = _last_before(stops, first), _first_from(stops, last)
    header_before = _last_before(headers, first)
    context = np.full(len(first), -1)
    for i in reversed(range(len(CONTEXTS))):
        forward, backward, section = (
            rules[CONTEXTS[i]][phrase] for rules in (lexicon.forward, lexicon.backward, lexicon.section)
        )
        trigger = _last_before(_marks(words, end[forward] - 1), first)
        in_scope = (trigger > stop_before) & (first - trigger <= _MAX_FORWARD)
        trigger = _first_from(_marks(words, start[backward]), last)
        in_scope |= (trigger < stop_after) & (trigger - last < _MAX_BACKWARD)
        in_scope |= _last_before(_marks(words, start[section]), first) > header_before
        context[in_scope] = i
    return context


def _section_starts(words: np.ndarray, ends: np.ndarray, lexicon: Lexicon) -> np.ndarray:
    """Marks (bool) of what closes a section: an empty line, the end of the note, and where the next header begins."""
    marks = np.isin(words, [lexicon.words[_PARAGRAPH], lexicon.words[_BOUNDARY]])
    colons = np.flatnonzero(words == lexicon.words[":"])
    before = _last_before(ends, colons)
    is_header = (before >= 0) & (colons - before <= _MAX_HEADER)
    marks[before[is_header]] = True
    return marks


def _marks(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    marks = np.zeros(len(words), bool)
    marks[places] = True
    return marks


def _last_before(marks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Last marked token before each place; -1 where there is none."""
    marked = np.append(-1, np.flatnonzero(marks))
    return marked[np.searchsorted(marked, places) - 1]


def _first_from(marks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """First marked token at or after each place; the number of tokens where there is none."""
    marked = np.append(np.flatnonzero(marks), len(marks))
    return marked[np.searchsorted(marked, places)]


def _count(found: _Found, context: int, num_notes: int, num_features: int) -> Int[np.ndarray, "n F"]:
    keys = (found.note * num_features + found.feature)[found.context == context]
    counts = np.bincount(keys, minlength=num_notes * num_features)
    return counts.reshape(num_notes, num_features).astype(np.int32)


def _slices(texts: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in texts.chunks:
        for at in range(0, len(chunk), _BATCH_NOTES):
            yield chunk.slice(at, _BATCH_NOTES)
