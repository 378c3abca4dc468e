"""Finds silver mentions with fine types in encyclopedia text: completely annotated sentences to train on.

In: articles (JSON Lines with id, title and text, plain or .xz), definition sentences with one mention and its type
phrase each, and the taxonomy. Out: JSON Lines files of sentences, and of passages of several sentences of one article
("doc" names them); a JSON file of names by their type. A part of the texts stand as words with every mark apart.

    python scripts/default_model/silver_mentions.py --text data/*.jsonl.xz --definitions
    definitions.jsonl --output silver.jsonl
"""

import argparse
import hashlib
import json
import lzma
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from silver.dictionary import DictionaryBuilder, NameDictionary, WordCounts, read_pairs
from silver.matching import ArticleMatcher, Sentence
from silver.passages import choose_passages
from silver.patterns import Lists
from silver.sentences import split_sentences
from silver.taxonomy import TAXONOMY, Taxonomy
from spaced_words import labelled_lines

COUNTED_CHARACTERS = 1500  # of an article, for the counts of words
PLAIN = {"date", "nationality", "country", "percentage", "money", "US state", "person", "city"}
PLAIN_SHARE = 0.2  # of the sentences may hold nothing else
APART_SHARE = 0.4  # of the texts stand as words
SURFACE_AT_MOST, PLAIN_SURFACE_AT_MOST = 200, 1500  # sentences with one and the same name, of other and of plain types


def read_articles(paths: Iterable[Path]) -> Iterator[dict[str, str]]:
    """Yields the articles of all files, one of each in turn."""
    files = [(lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") for path in paths]
    try:
        while files:
            for file in list(files):
                if line := file.readline():
                    yield json.loads(line)
                else:
                    files.remove(file)
                    file.close()
    finally:
        for file in files:
            file.close()


def make_dictionary(options: argparse.Namespace, taxonomy: Taxonomy) -> tuple[NameDictionary, WordCounts]:
    """Reads the corpus once, and the definitions."""
    counts = WordCounts()
    builder = DictionaryBuilder(taxonomy, counts, options.rare_below)
    for article in read_articles(options.text):
        counts.add(article["text"][:COUNTED_CHARACTERS])
        builder.add_article(article["title"], article["text"])
    for path in options.definitions:
        for mention, phrase in read_pairs(path):
            builder.add_pair(mention, phrase)
    return builder.build(), counts


def annotate(options: argparse.Namespace, matcher: ArticleMatcher) -> Iterator[tuple[str, Sentence]]:
    """(article id, sentence) of all sentences in which every name is known; some hold none."""
    for article in read_articles(options.text):
        matcher.start(article["title"])
        for text in split_sentences(article["text"]):
            sentence = matcher.sentence(text)
            if sentence is not None:
                yield str(article["id"]), sentence


def select(pool: Sequence[tuple[str, Sentence]], count: int, seed: int) -> list[int]:
    """Numbers of at most `count` sentences with mentions; rare types and many mentions are more likely."""
    frequency = Counter(label for _, sentence in pool for _, _, label in sentence.mentions)
    generator = random.Random(seed)
    keys = []
    for number, (_, sentence) in enumerate(pool):
        if not sentence.mentions:
            continue
        rarity = sum(frequency[label] ** -0.5 for label in {label for _, _, label in sentence.mentions})
        weight = rarity * (0.3 if len(sentence.mentions) == 1 else 1.0)
        keys.append((-math.log(1.0 - generator.random()) / weight, number))
    surfaces: Counter[str] = Counter()
    plain, chosen = 0, []
    for _, number in sorted(keys):
        if len(chosen) == count:
            break
        sentence = pool[number][1]
        mentions = [mention for mention in sentence.mentions if mention[2] != "date"]
        names = {(sentence.text[start:end], label in PLAIN) for start, end, label in mentions}
        only_plain = all(label in PLAIN for _, _, label in sentence.mentions)
        if (only_plain and plain >= PLAIN_SHARE * count) or any(
            surfaces[name] >= (PLAIN_SURFACE_AT_MOST if is_plain else SURFACE_AT_MOST) for name, is_plain in names
        ):
            continue
        surfaces.update(name for name, _ in names)
        plain += only_plain
        chosen.append(number)
    return sorted(chosen)


def without_copies(sentences: Iterable[tuple[str, Sentence]]) -> list[tuple[str, Sentence]]:
    """Drops texts that occur before."""
    seen: set[bytes] = set()
    kept = []
    for article, sentence in sentences:
        digest = hashlib.blake2b(sentence.text.encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append((article, sentence))
    return kept


def unquoted(sentence: Sentence, taxonomy: Taxonomy) -> Sentence:
    """Returns the sentence without the quotation marks around works, which stand for italics in plain text."""
    marks: set[int] = set()
    mentions = []
    for start, end, label in sentence.mentions:
        quoted = sentence.text[start - 1 : start] == sentence.text[end : end + 1] == '"'
        if quoted and taxonomy.most_general(label) == "creative work":
            marks |= {start - 1, end}
    text = "".join(character for at, character in enumerate(sentence.text) if at not in marks)
    for start, end, label in sentence.mentions:
        dropped = sum(mark < start for mark in marks)
        mentions.append((start - dropped, end - dropped, label))
    return Sentence(text, tuple(mentions))


def write(output: Path, texts: Iterable[tuple[str, Sentence]], taxonomy: Taxonomy, seed: int) -> Counter[str]:
    """Writes sentences, all of one "doc" in one form; returns how many mentions each label has."""
    labels: Counter[str] = Counter()
    with output.open("w", encoding="utf-8") as out:
        for doc, group in groupby(texts, lambda entry: entry[0]):
            coins = random.Random(f"{seed} {doc}")
            apart, bare = coins.random() < APART_SHARE, coins.random() < 0.5
            shown = [unquoted(sentence, taxonomy) if bare else sentence for _, sentence in group]
            labels.update(label for sentence in shown for _, _, label in sentence.mentions)
            for line in labelled_lines([(sentence.text, sentence.mentions) for sentence in shown], apart=apart):
                out.write(json.dumps({**line, "doc": doc}, ensure_ascii=False) + "\n")
    return labels


def write_names(output: Path, names: NameDictionary) -> None:
    """Writes the dictionary: type -> names and works; first and last names of people."""
    by_type: dict[str, list[str]] = {}
    for name, label in sorted({**names.quoted, **names.labels}.items()):
        by_type.setdefault(label, []).append(name)
    known = {"types": by_type, "first_names": sorted(names.first_names), "last_names": sorted(names.last_names)}
    output.write_text(json.dumps(known, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def take_passages(
    options: argparse.Namespace, pool: Sequence[tuple[str, Sentence]], taxonomy: Taxonomy
) -> list[tuple[str, Sentence]]:
    """Writes passages; returns the sentences that are in none."""
    runs = choose_passages(pool, options.max_passages, options.seed)
    passages = ((f"{pool[number][0]}.{run.start}", pool[number][1]) for run in runs for number in run)
    labels = write(options.passages, passages, taxonomy, options.seed)
    print(f"{len(runs):,} passages of {sum(map(len, runs)):,} sentences with {labels.total():,} mentions", flush=True)
    taken = {number for run in runs for number in run}
    return [entry for number, entry in enumerate(pool) if number not in taken]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="articles")
    parser.add_argument(
        "--definitions", type=Path, nargs="*", default=[], metavar="FILE", help="examples of one mention"
    )
    parser.add_argument("--types", type=Path, default=TAXONOMY, metavar="FILE", help="the taxonomy")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--max-sentences", type=int, default=150_000)
    parser.add_argument("--passages", type=Path, metavar="FILE", help="also write passages, here")
    parser.add_argument("--max-passages", type=int, default=12_000)
    parser.add_argument("--names", type=Path, metavar="FILE", help="write the names of every type here")
    parser.add_argument("--rare-below", type=int, default=30, help="names that a type outside the taxonomy needs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if missing := [str(path) for path in (*options.text, *options.definitions, options.types) if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    for name, number in (("--max-sentences", options.max_sentences), ("--max-passages", options.max_passages)):
        if number < 1:
            parser.error(f"argument {name}: {number}: give at least 1")
    options.text = sorted(options.text)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the file."""
    options, began = parse(argv), time.perf_counter()
    taxonomy = Taxonomy.read(options.types)
    names, counts = make_dictionary(options, taxonomy)
    print(f"{len(names.labels):,} names in {time.perf_counter() - began:.0f} s", flush=True)
    if options.names:
        write_names(options.names, names)
    pool = without_copies(annotate(options, ArticleMatcher(taxonomy, names, counts, Lists(taxonomy))))
    print(f"{len(pool):,} complete sentences in {time.perf_counter() - began:.0f} s", flush=True)
    if options.passages:
        pool = take_passages(options, pool, taxonomy)
    chosen = [pool[number] for number in select(pool, options.max_sentences, options.seed)]
    labels = write(options.output, chosen, taxonomy, options.seed)
    print(f"{len(chosen):,} sentences kept, in {time.perf_counter() - began:.0f} s")
    kinds: Counter[str] = Counter()
    for label, number in labels.items():
        kinds[taxonomy.most_general(label)] += number
    print("kinds: " + ", ".join(f"{label} {number:,}" for label, number in kinds.most_common(20)))
    print(f"types: {len(labels):,}; " + ", ".join(f"{label} {number:,}" for label, number in labels.most_common(60)))
    print(json.dumps({"sentences": len(chosen), "mentions": labels.total(), "types": len(labels)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
