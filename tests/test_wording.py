"""Numbers with what they count."""

import pytest

from ehrjax.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ["file"], "0 files"),
        (1, ["file"], "1 file"),
        (2, ["test row"], "2 test rows"),
        (1_000, ["row"], "1,000 rows"),
        (1, ["class", "classes"], "1 class"),
        (0, ["class", "classes"], "0 classes"),
        (1, ["patient is", "patients are"], "1 patient is"),
        (3, ["patient is", "patients are"], "3 patients are"),
    ],
)
def test_only_one_is_in_the_singular(number, words, text):
    assert counted(number, *words) == text
