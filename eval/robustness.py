"""Other ways to ask for the same and to write it: labels renamed, reordered or described, text recased or joined.

In: examples with the labels person, organization and location. Out: `Variant`s, each with its examples and the labels
to ask for; the gold spans are the same in all.
Knows nothing of models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from decodner_hf.data.document_context import Context, passages_of
from decodner_hf.data.examples import Example, recased

NAMES = {"person": ("people", "human", "individual"), "organization": ("company or institution", "institution"),
         "location": ("place", "geographic location")}  # fmt: skip
DESCRIPTIONS = {
    "person": "a named human being",
    "organization": "a named company, institution, party or team",
    "location": "a named place, such as a country, a city or a river",
}
SHUFFLES = 3
LONG_WORDS = 1000


@dataclass(frozen=True)
class Variant:
    """One change to a set.

    Attributes:
        kind: what is changed: "name", "order", "descriptions", "case" or "length".
        name: the change itself.
        examples: B examples with labels among `labels`.
        labels: name asked for -> description or None, in prompt order.
        read: what an example is.
    """

    kind: str
    name: str
    examples: list[Example]
    labels: dict[str, str | None]
    read: str = "sentences"


def variants(examples: Sequence[Example], seed: int = 0) -> Iterator[Variant]:
    """All changes, one at a time, of examples with the labels of `NAMES` in lists of words.

    None is longer where no example names its document: sentences that do not belong together make no document.

    Raises:
        ValueError: examples of texts.
    """
    if any(isinstance(example.content, str) for example in examples):
        raise ValueError("robustness is measured on lists of words, not on texts: their offsets hold in any case.")
    plain: dict[str, str | None] = dict.fromkeys(NAMES)
    for label, others in NAMES.items():
        for other in others:
            names = {name: other if name == label else name for name in NAMES}
            yield Variant("name", f"{label} → {other}", renamed(examples, names), dict.fromkeys(names.values()))
    orders = list(permutations(NAMES))[1:]
    for index in np.random.default_rng(seed).permutation(len(orders))[:SHUFFLES].tolist():
        yield Variant("order", ", ".join(orders[index]), list(examples), dict.fromkeys(orders[index]))
    yield Variant("descriptions", "with descriptions", list(examples), dict(DESCRIPTIONS))
    yield Variant("case", "UPPER CASE", [recased(example, "upper") for example in examples], plain)
    yield Variant("case", "lower case", [recased(example, "lower") for example in examples], plain)
    if any(example.document for example in examples):
        name = f"documents of {LONG_WORDS:,} words and more"
        yield Variant("length", name, long_documents(examples), plain, "documents")


def renamed(examples: Sequence[Example], names: dict[str, str]) -> list[Example]:
    """The examples with their labels called by other names."""
    return [
        replace(example, entities=tuple((start, end, names[label]) for start, end, label in example.entities))
        for example in examples
    ]


def long_documents(examples: Sequence[Example], words: int = LONG_WORDS) -> list[Example]:
    """The sentences joined to examples of whole documents, each of at least `words` words (but one, if there are few).

    A sentence that names no document is one by itself. Candidates may cross sentences here: nobody says where a user's
    sentences end.
    """
    numbers, filled, before = [], 0, None
    for example in examples:
        full = filled >= words and (example.document is None or example.document != before)
        numbers.append((numbers[-1] if numbers else 0) + full)
        filled, before = (0 if full else filled) + len(example.content), example.document
    if filled < words:  # the rest joins the ones before it
        numbers = [min(number, max(numbers[-1] - 1, 0)) for number in numbers]
    grouped = [replace(example, document=str(number)) for example, number in zip(examples, numbers, strict=True)]
    everything = Context("document", sum(len(example.content) for example in examples))
    return [passage.example for passage in passages_of(grouped, everything)]
