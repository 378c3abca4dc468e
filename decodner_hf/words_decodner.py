r"""Splits text into the words at whose edges an entity may start or end.

In: a string. Out: character starts and ends of its words. Everything visible belongs to exactly one word.
Words are fine pieces, so that no entity is out of reach: "Apple's" is "Apple", "'s"; "dell'Italia" is "dell'",
"Italia"; "Jean-Luc" is "Jean", "-", "Luc"; "(AT&T)!" is "(", "AT", "&", "T", ")", "!". What entities are not cut in stays
whole: "U.S.", "3.5", "1,000", URLs, e-mail addresses, emoji, flags, letters with their marks, dots or dashes in a row.
Scripts without spaces between words, Hangul with its particles included, give a word a character (Katakana a run).
"""

import numpy as np
import regex
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# Scripts in which a space does not end a word; lb=SA: Thai, Lao, Khmer, Myanmar and their like.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Hangul}\p{lb=SA}]"
_LETTER = rf"[[[\p{{Alphabetic}}\p{{M}}\p{{N}}]--{_UNSPACED}]\p{{Nd}}]"
_JOINER = r"[\u00AD\u200C\u200D\u2060]"  # invisible and inside words: soft hyphen, zero-width (non-)joiner, word joiner
_INVISIBLE = r"[[\s\p{Z}\p{Cc}\p{Cf}]--[\u0600-\u0605\u06DD\u070F\u08E2\U000110BD\U000110CD\U000E0020-\U000E007F]]"
_CLITIC = r"(?i:s|t|d|m|ll|re|ve)"
_WORD = regex.compile(
    rf"""(?V1x)
      (?:https?|ftp)://[!-~]*[A-Za-z0-9/_\#=&%~+-]          # URL, without the punctuation behind it
    | www\.[!-~]*[A-Za-z0-9/_\#=&%~+-]
    | (?<![\w.%+-])[\w.%+-]{{1,64}}+@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)+   # e-mail address
    | (?<!{_LETTER})[\p{{L}}&&{_LETTER}]\p{{M}}*+(?:\.[\p{{L}}&&{_LETTER}]\p{{M}}*+)+(?!{_LETTER})\.?  # U.S.
    | (?<={_LETTER})['’]{_CLITIC}(?!{_LETTER})             # the 's of Apple's
    | {_LETTER}++(?:(?:_++|{_JOINER}++|(?<=\p{{Nd}})[.,\u066B\u066C](?=\p{{Nd}})){_LETTER}++)*+
      (?:['’](?=[\p{{L}}&&{_LETTER}])(?!{_CLITIC}(?!{_LETTER})))?         # the l' of l'Italia
    | [\p{{Katakana}}\u30FC\uFF70\uFF9E\uFF9F\u3099\u309A]++\p{{M}}*+
    | [\u0E40-\u0E44\u0EC0-\u0EC4]?(?:\X(?<=[\u17D2\u1039]))*\X[\u0E30\u0E32\u0E33\u0E45\u0EB0\u0EB2\u0EB3]*+(?<=\p{{lb=SA}}\p{{M}}*)
    | ([\p{{P}}\p{{Sm}}\p{{Sk}}])\1{{2,}}+(?![\p{{M}}\u200D])  # ... and ---
    | (?!{_INVISIBLE})\X                                    # any other character with its marks; emoji, flags
    """
)


def split_words(text: str) -> tuple[IntArray, IntArray]:
    """Returns the starts and the ends (half-open, in characters) of the words of `text`, int64 [W] each, in order."""
    bounds = np.fromiter(
        (bound for match in _WORD.finditer(text) for bound in match.span()), np.int64
    ).reshape(-1, 2)
    return bounds[:, 0].copy(), bounds[:, 1].copy()
