"""Turns one tag per word into entities: IOB1, IOB2, BIOES and BILOU, read by one rule.

In: a sentence's tags ("B-PER", "O"). Out: `(start, end, label)` in words, half-open.
Knows nothing of files, columns or models.
"""

from collections.abc import Sequence

STARTING = "BSU"  # always a new entity
CONTINUING = "IMEL"  # the open entity's, if it has the same label; a new one's otherwise
ENDING = "SUEL"  # nothing can continue after these
PREFIXES = "".join(dict.fromkeys(STARTING + CONTINUING))


def tags_to_entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Returns the entities that a sentence's tags mark, in order.

    An entity begins at B, S or U, and at any other prefix that cannot continue from the word before (after "O",
    another label, or an entity that E, L, S or U has closed), which is how IOB1 and the official CoNLL scorer read.

    Args:
        tags: one per word; "O", or a prefix of B I O E S (or M L U), a hyphen and a label.

    Raises:
        ValueError: a tag of another form.
    """
    entities: list[tuple[int, int, str]] = []
    open_label, start = None, 0
    for index, tag in enumerate(tags):
        prefix, label = split_tag(tag)
        continues = label is not None and label == open_label and prefix in CONTINUING
        if open_label is not None and not continues:
            entities.append((start, index, open_label))
        if not continues:
            open_label, start = label, index
        if open_label is not None and prefix in ENDING:
            entities.append((start, index + 1, open_label))
            open_label = None
    if open_label is not None:
        entities.append((start, len(tags), open_label))
    return entities


def split_tag(tag: str) -> tuple[str, str | None]:
    """Returns the prefix and the label of a tag; `("O", None)` outside of entities."""
    if tag == "O":
        return "O", None
    prefix, hyphen, label = tag.partition("-") if isinstance(tag, str) else ("", "", "")
    if len(prefix) != 1 or prefix not in PREFIXES or not hyphen or not label:
        raise ValueError(
            f"the tag {tag!r} does not parse: a tag is O, or one of {', '.join(PREFIXES)} with a hyphen and a label, "
            'for example "B-PER".'
        )
    return prefix, label
