"""A pipeline without a model, for tests of what surrounds one."""

import re
from itertools import islice

MODEL = ["--model", "tiny", "--labels", "Name"]
TEXTS = ["Steve Jobs founded Apple.", "", "nobody here", 'Zoë said "Hi"', "日本 Tokyo\u2028Kyoto"]

READING = {
    "windows": 1,
    "truncated_at": None,
    "words_left_out": [],
    "candidates": 5,
    "candidates_left_out": {"too_many_words": 2, "no_tokens": 0, "not_read": 0},
}


def entities_of(text):
    return [
        {"entity_group": "Name", "score": 0.75, "word": match[0], "start": match.start(), "end": match.end()}
        for match in re.finditer(r"\b[A-Z]\w+(?: [A-Z]\w+)*", text)
    ]


class FakePipe:
    """Capitalised words are names. Packs three documents a pass, reading ahead; refuses texts that say BAD."""

    def __init__(self, interrupt_after=None, fingerprint="one model", settings=None):
        self.interrupt_after = interrupt_after
        self.fingerprint = fingerprint
        self.settings = settings or {}
        self.annotated = []

    def __call__(self, inputs, return_report=False):
        results = [self.one(inputs)] if isinstance(inputs, str) else self.many(inputs)
        if return_report:
            results = ({"entities": entities, "report": READING} for entities in results)
        return next(iter(results)) if isinstance(inputs, str) else results

    def many(self, texts):
        while group := list(islice(texts, 3)):
            yield from [self.one(text) for text in group]

    def one(self, text):
        if "BAD" in text:
            raise ValueError("BAD is refused.")
        if len(self.annotated) == self.interrupt_after:
            raise KeyboardInterrupt
        self.annotated.append(text)
        return entities_of(text)


def describe_fakes(monkeypatch):
    """Lets fakes say themselves what a run takes from a pipeline's model and settings."""
    monkeypatch.setattr("decodner_hf.corpus.engine.fingerprint", lambda pipe: pipe.fingerprint)
    monkeypatch.setattr("decodner_hf.corpus.engine.settings_of", lambda pipe: pipe.settings)
