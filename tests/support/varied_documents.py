"""Documents whose words tokenizers cut in every way: hyphens, apostrophes, emoji, several scripts, odd spaces."""

from collections.abc import Sequence
from random import Random

PIECES = (
    "well-known", "Jean-Luc", "O'Neil's", "don't-worry", "(Apple)", "AT&T", "U.S.", "3.5%", "x", "état-major",
    "東京都", "北京大学", "삼성전자", "กรุงเทพ",
    "\U0001f642", "\U0001f469\U0001f3fd\u200d\U0001f680", "\U0001f1eb\U0001f1f7",
    "Ann", "Bob", "Berlin", "Cupertino", "met", "the", "\u2019s", "--", "e\u0301", "\ufb01n", "\u00ad", "A-B-C",
)  # fmt: skip
SPACES = (" ",) * 8 + ("", "", "-", "  ", "\n", "\x85\u2000", "\u3000")


def varied_text(pieces: Sequence[tuple[int, int]]) -> str:
    """Returns the text of numbered pieces, each after a numbered space; any numbers will do."""
    return "".join(f"{SPACES[space % len(SPACES)]}{PIECES[piece % len(PIECES)]}" for piece, space in pieces)


def random_text(random: Random, most_words: int) -> str:
    """Returns a text of up to `most_words` pieces; blank now and then."""
    return varied_text(
        [(random.randrange(10**6), random.randrange(10**6)) for _ in range(random.randint(0, most_words))]
    )
