"""Plain text for pretraining: a byte-level BPE tokenizer, the corpus as one row of tokens, and its order.

In: JSON Lines files with a text each line, plain or .xz. Out: a `Tokenizer`, and a `Corpus` of uint16 tokens on disk.
The order of the documents is a function of seed and epoch alone, so that a resumed run reads what it would have read.
Knows nothing of models or devices.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

IntArray = NDArray[np.int64]
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
# Words with the mark or space before them, digits by twos, punctuation with the line ends after it, other space.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DOCUMENTS_AT_ONCE = 2048
MOST_TOKENS = 65536  # 16 bits
READERS = 4  # files that are decompressed at the same time


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents.

    Attributes:
        token_ids: uint16 [T], one document after the other, each from its begin to its end token.
        cu_seqlens: int64 [D + 1], where each document starts; the last entry is T.
    """

    token_ids: NDArray[np.uint16]
    cu_seqlens: IntArray

    def split(self, held_out: int, seed: int) -> tuple[IntArray, IntArray]:
        """Document numbers for training and, `held_out` of them, for validation."""
        documents = np.random.default_rng(seed).permutation(len(self.cu_seqlens) - 1)
        if not 0 <= held_out < len(documents):
            raise ValueError(f"{held_out} of {len(documents)} documents cannot be held out: leave some to train on.")
        return np.sort(documents[held_out:]), np.sort(documents[:held_out])

    def stream(self, documents: IntArray) -> NDArray[np.uint16]:
        """Returns the tokens of `documents`, in that order."""
        bounds = zip(self.cu_seqlens[documents].tolist(), self.cu_seqlens[documents + 1].tolist(), strict=True)
        return np.concatenate([self.token_ids[start:end] for start, end in bounds])


def cut_rows(stream: NDArray[np.uint16], row_tokens: int, what: str = "text") -> NDArray[np.uint16]:
    """[R, row_tokens + 1] rows of the stream; each begins with the token that the row before it ends with.

    Raises:
        ValueError: a stream of less than a row, which the message calls `what`.
    """
    count = (len(stream) - 1) // row_tokens
    if count < 1:
        raise ValueError(
            f"{len(stream)} tokens of {what} do not fill a row of {row_tokens}: give more text, shorter rows "
            "(--row-tokens), or hold out other --valid-documents."
        )
    return np.lib.stride_tricks.sliding_window_view(stream, row_tokens + 1)[::row_tokens]


class RowOrder:
    """Yields the rows of all epochs, one after the other; every epoch shuffles the documents."""

    def __init__(self, corpus: Corpus, documents: IntArray, row_tokens: int, seed: int) -> None:
        """Rows of `row_tokens` tokens out of `documents`."""
        self.corpus, self.documents, self.row_tokens, self.seed = corpus, documents, row_tokens, seed
        self.rows_per_epoch = len(self._rows_of(0))

    def take(self, first: int, count: int) -> IntArray:
        """int64 [count, row_tokens + 1]: rows `first` to `first + count - 1`, counted over all epochs."""
        taken = []
        while count:
            epoch, row = divmod(first, self.rows_per_epoch)
            if epoch != self._epoch:
                self._rows_of(epoch)
            rows = self._rows[row : row + count]
            taken.append(rows)
            first, count = first + len(rows), count - len(rows)
        return np.concatenate(taken).astype(np.int64)

    def _rows_of(self, epoch: int) -> NDArray[np.uint16]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.documents)
        self._epoch, self._rows = epoch, cut_rows(self.corpus.stream(order), self.row_tokens)
        return self._rows


def read_texts(path: Path, field: str) -> Iterator[str]:
    """Yields the texts of a .jsonl or .jsonl.xz file, a line each; a ValueError names a line that has none."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                raise ValueError(f"{path}, line {number}: no text in the field {field!r}; name it with --text-field.")
            yield record[field]


def described(paths: Sequence[Path]) -> list[str]:
    """Name and size of each file: what must be the same for work on these texts to be gone on with."""
    return [f"{path.name} {path.stat().st_size}" for path in paths]


def check_same(path: Path, kept: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuses to go on from `path`, which was made with the options `kept`, where `asked` has others of that name.

    Raises:
        ValueError: names the values that differ.
    """
    other = {name: value for name, value in kept.items() if value != asked[name]}
    if other:
        raise ValueError(
            f"{path} is of a run with {other}, this one has others: give those values, or another --work folder."
        )


def prepare_tokenizer(
    paths: Sequence[Path], field: str, vocabulary: int, characters: int, directory: Path
) -> tuple[PreTrainedTokenizerFast, bool]:
    """Returns the tokenizer in `directory`, and whether it was trained just now, since there was none.

    Raises:
        ValueError: the one there was trained with other values, or on other files; or see `train_tokenizer`.
    """
    made_from = directory / "made_from.json"  # written last: without it the tokenizer may be half there
    asked = {"vocabulary": vocabulary, "tokenizer_characters": characters, "text_field": field}
    asked |= {"text": described(paths)}
    new = not made_from.exists()
    if new:
        trained = train_tokenizer(paths, field, vocabulary, characters)
        marks = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
        PreTrainedTokenizerFast(tokenizer_object=trained, **marks).save_pretrained(directory)
        made_from.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    else:
        check_same(directory, json.loads(made_from.read_text("utf-8")), asked)
    return PreTrainedTokenizerFast.from_pretrained(directory), new


def tokenizer_in(directory: Path) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a model that a run starts from; a ValueError if it cannot serve here."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    if END not in tokenizer.get_vocab() or len(tokenizer) > MOST_TOKENS:
        raise ValueError(f"{directory}: the tokenizer must have the token {END}, and at most {MOST_TOKENS:,} in all.")
    return tokenizer


def train_tokenizer(paths: Sequence[Path], field: str, vocabulary: int, characters: int) -> Tokenizer:
    """Trains a byte-level BPE on the first `characters` characters, an equal part of every file.

    Raises:
        ValueError: a vocabulary that is too small for the 256 bytes, or too large for 16 bits.
    """
    if not 300 <= vocabulary <= MOST_TOKENS:
        raise ValueError(f"the vocabulary must have 300 to {MOST_TOKENS:,} tokens, not {vocabulary}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(paths, field, characters // len(paths)), trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]),
        ]
    )
    return tokenizer


def _sample(paths: Sequence[Path], field: str, characters_per_file: int) -> Iterator[str]:
    def head(path: Path) -> list[str]:
        texts, read = [], 0
        for text in read_texts(path, field):
            texts.append(text)
            read += len(text)
            if read >= characters_per_file:
                break
        return texts

    with ThreadPoolExecutor(READERS) as readers:
        for texts in readers.map(head, paths):
            yield from texts


def tokenize_corpus(paths: Sequence[Path], field: str, tokenizer: Tokenizer, directory: Path) -> Corpus:
    """Tokenizes the files once and keeps the tokens in `directory`; later calls with the same files map them.

    Files are decompressed by threads while the tokenizer, which uses every core by itself, is at work.

    Raises:
        ValueError: no text at all, or a line that has none.
    """
    made_from = [tokenizer.to_str(), field, *described(paths)]
    fingerprint = hashlib.sha256("\n".join(made_from).encode()).hexdigest()
    directory.mkdir(parents=True, exist_ok=True)
    tokens_path, bounds_path = directory / "tokens.uint16", directory / "documents.npy"
    stamp = directory / "fingerprint.txt"
    if not (stamp.exists() and stamp.read_text() == fingerprint):
        stamp.unlink(missing_ok=True)
        lengths: list[IntArray] = []
        with tokens_path.open("wb") as out, ThreadPoolExecutor(READERS) as readers:
            for texts in readers.map(lambda path: list(read_texts(path, field)), paths):
                remaining = iter(texts)
                while batch := list(islice(remaining, DOCUMENTS_AT_ONCE)):
                    lengths.append(_write_batch(batch, tokenizer, out))
        if not lengths:
            raise ValueError(f"there is no text in {', '.join(map(str, paths))}.")
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
        np.save(bounds_path, bounds)
        stamp.write_text(fingerprint)
    return Corpus(np.memmap(tokens_path, np.uint16, "r"), np.load(bounds_path))


def _write_batch(texts: list[str], tokenizer: Tokenizer, out: BinaryIO) -> IntArray:
    end = tokenizer.token_to_id(END)
    lengths = np.empty(len(texts), np.int64)
    for index, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
        ids = np.array([*encoding.ids, end], np.uint16)
        lengths[index] = len(ids)
        out.write(ids.tobytes())
    return lengths
