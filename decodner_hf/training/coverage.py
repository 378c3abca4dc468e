"""What became of the examples and gold spans of a training source.

In: counts, as examples are encoded. Out: `Coverage`, and a line about it for people.
Knows nothing of how examples are encoded.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Coverage:
    """What became of the examples and their gold spans.

    Attributes:
        examples: read.
        gold: spans that are labelled.
        wider: those wider than the widest candidate.
        off_words: those that do not begin and end with a word, or cross a bound of a joined document.
        relabelled: those that are labelled twice; the first label counts.
        wide_by_label: how many are wider, by label.
        unheld: examples that are left out, because no window holds the document that they are read in.
        unheld_gold: spans that are labelled in these; counted under `gold` beside, and nowhere else.
        reason: why the first of these is left out.
    """

    examples: int = 0
    gold: int = 0
    wider: int = 0
    off_words: int = 0
    relabelled: int = 0
    wide_by_label: Counter[str] = field(default_factory=Counter)
    unheld: int = 0
    unheld_gold: int = 0
    reason: str = ""

    def add(self, other: "Coverage") -> None:
        """Adds the counts of other examples."""
        reason = self.reason or other.reason
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self.reason = reason

    def leave_out(self, examples: int, gold: int, reason: str) -> None:
        """Counts the examples of one document that no window holds."""
        self.add(Coverage(examples=examples, gold=gold, unheld=examples, unheld_gold=gold, reason=reason))

    def report(self) -> str:
        """One line for people."""
        share = 100 * (1 - (self.wider + self.off_words + self.unheld_gold) / max(1, self.gold))
        text = f"{self.examples:,} examples, {self.gold:,} gold spans, {share:.2f}% of them candidates"
        parts = {"wider than the limit": self.wider, "off the word bounds": self.off_words}
        parts["labelled twice (first label taken)"] = self.relabelled
        text += "".join(f"; {count:,} {what}" for what, count in parts.items() if count)
        if self.wide_by_label:
            text += f" (widest by label: {', '.join(f'{n} {c}' for n, c in self.wide_by_label.most_common(3))})"
        if self.unheld:
            text += f"; {self.unheld:,} examples with {self.unheld_gold:,} gold spans left out, which no window holds"
            text += f" ({self.reason})"
        return text
