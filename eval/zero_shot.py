"""The zero-shot benchmark of seven sets: CrossNER's five domains, MIT Movie and MIT Restaurant.

Protocol: the test splits; all labels of a set are asked for at once, "misc" is left out; micro F1 of exact spans,
and the plain average over the sets. Decoder and thresholds are the model's own, the same for every set.
"""

from collections.abc import Sequence

CROSSNER = ("crossner_ai", "crossner_literature", "crossner_music", "crossner_politics", "crossner_science")
MIT = ("mit_movie_eng", "mit_restaurant")
SETS = (*CROSSNER, *MIT)
SPLIT = "test"
LEFT_OUT = "misc"
PHRASES = {
    "organisation": "organization",
    "programlang": "program language",
    "literarygenre": "literary genre",
    "musicalartist": "musical artist",
    "musicgenre": "music genre",
    "musicalinstrument": "musical instrument",
    "politicalparty": "political party",
    "astronomicalobject": "astronomical object",
    "chemicalelement": "chemical element",
    "chemicalcompound": "chemical compound",
    "academicjournal": "academic journal",
}


def label_phrases(name: str, gold_labels: Sequence[str]) -> dict[str, str | None]:
    """The label map of one of the sets: gold label -> phrase, None for "misc"."""
    if name in MIT:
        return {label: label.lower().replace("_", " ") for label in gold_labels}
    return {label: None if label == LEFT_OUT else PHRASES.get(label, label) for label in gold_labels}
