"""Small tokenizers of every kind that decoders use, trained in code on a few sentences."""

import copy
from functools import lru_cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "Steve Jobs founded Apple Inc. in Cupertino, California, on April 1, 1976.",
    "Mr. O'Neil's company, AT&T (U.S.), paid $3.5 million to Yahoo! in New York-based Jean-Luc's deal.",
    "La société Électricité de France à Zürich; São Paulo, Łódź, Malmö und Köln.",
    "東京都に本社を置くトヨタ自動車は、北京大学と協力する。",
    "กรุงเทพมหานคร เป็นเมืองหลวง",
    "삼성전자는 대한민국의 회사이다.",
    "Write to info@example.com or see https://www.example.com/a?b=1 😀 👩‍👩‍👧 🇫🇷!",
    "Classify the named entity span. Entity types: 1. Person 2. Company 3. Location 0. None",
    "Text: the text\nSpan: the span\n\n2019 2020 123 456 1000.\n\nEnd.\n",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@lru_cache
def byte_level_single_digits() -> PreTrainedTokenizerFast:
    """Qwen-like: every digit is a token, a space before a number is one of its own, offsets include the space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, eos_token="<|end|>", pad_token="<|end|>")


@lru_cache
def byte_level_three_digits() -> PreTrainedTokenizerFast:
    """Llama-3-like: digits in groups of up to three, a beginning token, no pad token."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [f"{first}{second}{third}" for first in range(10) for second in range(10) for third in range(10)]
    numbers += [f"{first}{second}" for first in range(10) for second in range(10)]
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, " ".join(numbers), *["\n".join(numbers)]], trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
        ]
    )
    return wrap(tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


@lru_cache
def byte_level_trimmed() -> PreTrainedTokenizerFast:
    """GPT-2-like: offsets leave out the space that a token begins with."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>")


def _sentencepiece(metaspace: bool) -> PreTrainedTokenizerFast:
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    text = [sentence for sentence in SENTENCES if sentence.isascii() or "é" in sentence]
    text = [part for sentence in text for part in sentence.split("\n")]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=list("0123456789"), show_progress=False)
    trained.train_from_iterator(text, trainer)
    learnt = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    learnt = [token for token in learnt if not (len(token) > 1 and any(c.isdigit() for c in token))]
    vocab = {token: index for index, token in enumerate([*specials, *byte_tokens, *learnt])}
    merges = _merges(learnt)
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _merges(tokens: list[str]) -> list[tuple[str, str]]:
    """Returns every way to make a token of two others, in the order of the tokens."""
    known = set(tokens)
    splits = [[(token[:cut], token[cut:]) for cut in range(1, len(token))] for token in tokens]
    return [pair for pairs in splits for pair in pairs if known.issuperset(pair)]


@lru_cache
def sentencepiece_legacy() -> PreTrainedTokenizerFast:
    """Llama-2-like: "▁" prepended by the normalizer, single digits, byte fallback."""
    return _sentencepiece(metaspace=False)


@lru_cache
def sentencepiece_metaspace() -> PreTrainedTokenizerFast:
    """Returns the same tokens behind a Metaspace pre-tokenizer."""
    return _sentencepiece(metaspace=True)


@lru_cache
def word_piece() -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece that drops spaces, accents and control characters and adds tokens at both ends."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return wrap(tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


@lru_cache
def llama2_digits() -> PreTrainedTokenizerFast:
    """Llama-2's own ids for "0" to "3"; a lone "1" is the two tokens "▁" and "1"."""
    pieces = {"▁": 29871, "0": 29900, "1": 29896, "2": 29906, "3": 29941, "A": 29909, "▁A": 319, "<unk>": 0}
    vocab = pieces | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    model = models.BPE(vocab=vocab, merges=[("▁", "A")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrap(tokenizer, unk_token="<unk>")


BYTE_LEVEL = {
    "single_digits": byte_level_single_digits,
    "three_digits": byte_level_three_digits,
    "trimmed_offsets": byte_level_trimmed,
}
SENTENCEPIECE = {"legacy": sentencepiece_legacy, "metaspace": sentencepiece_metaspace}
ALL = BYTE_LEVEL | SENTENCEPIECE | {"word_piece": word_piece}


class RecordingBackend:
    """A Rust tokenizer that notes which of its methods are looked up, and how many texts it encodes."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend, self.used, self.encoded = backend, [], 0

    def __getattr__(self, name: str) -> Any:
        self.used.append(name)
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts: list[str], **kwargs: Any) -> Any:
        self.encoded += len(texts)
        return self.backend.encode_batch_fast(texts, **kwargs)

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        return copy.deepcopy(self.backend, memo)


def recording(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, RecordingBackend]:
    """Returns a copy of a tokenizer, and the notes that its backend keeps."""
    tokenizer = copy.deepcopy(tokenizer)
    backend = RecordingBackend(tokenizer._tokenizer)
    tokenizer._tokenizer = backend
    return tokenizer, backend
