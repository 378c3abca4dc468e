"""Splits articles into sentences, and finds what its form alone tells: dates, money, percentages.

In: text. Out: sentences; (start, end, label) with character offsets.
Knows nothing of names.
"""

import re
from collections.abc import Iterator

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
YEAR = r"(?:1\d{3}|20[0-2]\d)"
# Such a number is a year only after one of these.
OLD_YEAR = (
    r"(?:(?<=[Ii]n )|(?<=died )|(?<=born )|(?<=around )|(?<=year )|(?<=until )|(?<=since )|(?<=\d\d\d[-\u2013]))"
)
DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? (?:{MONTHS})(?:,? {YEAR})?"
    rf"|(?:{MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?(?!\d)(?:, {YEAR})?"
    rf"|(?:{MONTHS})(?:,? {YEAR})|(?:(?<= in )|(?<= of )|(?<=In )|(?<= since )|(?<= until ))(?:{MONTHS})"
    r"|\d{1,4} ?(?:BCE?|AD)\b|(?:1\d|20)\d0s"
    rf"|(?:{OLD_YEAR}1[0-4]\d\d|1[5-7]\d\d(?! [a-z]+s\b)|(?:1[89]\d|20[0-2])\d)(?![\d,.]\d|\d)"
    r"|(?:\d{1,2}(?:st|nd|rd|th)) century(?: BC)?|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)(?!\w)"
)
TIMED = re.compile(rf"\d|day\b|{MONTHS}")
MONEY = re.compile(r"(?<!\w)(?:US|A|C)?[$€£] ?\d(?:[\d,.]*\d)?(?: (?:thousand|million|billion|trillion))?\b")
PERCENT = re.compile(r"(?<![\w.])\d+(?:\.\d+)? ?(?:%|percent\b|per cent\b)")
SENTENCE_END = re.compile(r"[.!?][\"\u201d')\]]*\s+(?=[\"\u201c'(\[]?[A-Z0-9])")
ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|Capt|Rev|Hon|Gov|Sen|Rep|No|Nos|vs|v|ca|c|cf|approx|Ave|Mt|"
    r"Ft|Inc|Ltd|Co|Corp|Bros|etc|e\.g|i\.e|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec|vol|ed|op|al|pp)|\.[A-Z])$"
)
DAMAGE = re.compile(
    r"\(\s*[;,)]|\s[,;]|\(\)|  |approximately (?:north|south|east|west|of)|[=|{}<>\[\]]|\"\"|\u201c|\u201d|^\W*$"
)
WORDS_AT_LEAST, WORDS_AT_MOST = 6, 60


def split_sentences(text: str) -> Iterator[str]:
    """Yields the sentences of each line of a text, those that are too short, too long or damaged left out."""
    for sentence in _pieces(text):
        whole = sentence.endswith((".", "!", "?", '"')) and WORDS_AT_LEAST <= sentence.count(" ") + 1 <= WORDS_AT_MOST
        if whole and not DAMAGE.search(sentence):
            yield sentence


def _pieces(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        begin = 0
        for end in SENTENCE_END.finditer(line):
            if line[end.start()] == "." and ABBREVIATION.search(line, begin, end.start()):
                continue
            yield line[begin : end.end()].strip()
            begin = end.end()
        yield line[begin:].strip()


def dates_and_amounts(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, label) of dates, amounts of money and percentages; characters, half-open."""
    if not TIMED.search(text):
        return
    for label, pattern in (("date", DATE), ("money", MONEY), ("percentage", PERCENT)):
        for match in pattern.finditer(text):
            yield match.start(), match.end(), label
