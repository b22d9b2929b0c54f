"""Words that reports and printed lines share."""


def counted(number: int, one: str, many: str = "") -> str:
    """The number and what it counts, in the singular for one; `many` where the plural takes more than an "s".

    >>> counted(1, "file"), counted(1200, "test row"), counted(0, "patient is", "patients are")
    ('1 file', '1,200 test rows', '0 patients are')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
