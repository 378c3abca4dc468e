"""Names the keys of a training source; imports nothing heavy, so that the command line's help can list them."""

SOURCE_KEYS = (
    *("path", "split", "name", "label_map", "labels", "partial", "repeat", "limit", "licence"),
    *("case", "where", "context", "context_words"),
)
