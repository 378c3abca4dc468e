"""Writes tables in Markdown, for model cards and results.

In: headers and rows of text. Out: one string. Knows nothing of what the cells mean.
"""

from collections.abc import Collection, Sequence


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """Returns a table; its columns `words` (numbers from 0) are text, the others are figures, flush right."""
    rule = ["---" if column in words else "---:" for column in range(len(headers))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *rows))
