"""Encodes the prompt around a span, and chooses the single tokens that stand for labels in it.

In: labels and a fast tokenizer. Out: token ids of the prompt's parts, `LabelSymbols`, and `EncodedPrompt`.
The prompt is a prefix that every document shares (instruction and entity types), a chain per document
(`document_head`, the text, `document_tail`), a span, and an answer cue where one is set.
Knows nothing of candidate spans, forests or models.
"""

import string
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .arrays import IntArray
from .configuration import PROMPT_DEFAULTS, DecodNERConfig, normalize_labels
from .tokenization import check_tokenizer, continuation_ids, opening_ids
from .validation import check_count

CUE_ANCHORS = ("a", ":", "0", "\n")  # a span mostly ends in a letter
KEPT_LABEL_SETS = 64
SYMBOLS_AT_ONCE = 1024  # possible symbols tokenized together
CHAT_MARK = "DECODNER"  # stands for the user's message while a chat template is rendered
CONTINUATION_MARKS = ("+", "-", "=", "/", "*", "#")


Labels = tuple[tuple[str, str | None], ...]  # (name, description) in prompt order, hashable


class TooManyLabelsError(ValueError):
    """More labels than a tokenizer has symbols for; `available` labels can be served by one prompt."""

    def __init__(self, num_labels: int, available: int) -> None:
        """Names both numbers."""
        super().__init__(
            f"{num_labels} labels were given, but this tokenizer has single-token symbols for {available} only: "
            "score them in shards (see shard_labels)."
        )
        self.available = available


@dataclass(frozen=True)
class LabelSymbols:
    """The single tokens that stand for L labels and the none label; index 0 is the none label, then prompt order.

    Attributes:
        symbols: L + 1 strings, as the prompt names them.
        token_ids: int64 [L + 1], all different: each symbol's token as it stands after a span.
    """

    symbols: tuple[str, ...]
    token_ids: IntArray


@dataclass(frozen=True)
class EncodedPrompt:
    """The part of the prompt that documents share, for one set of labels.

    Attributes:
        prefix_token_ids: int64 [P].
        symbol_token_ids: int64 [L + 1], the none label's first.
        cue_token_ids: int64 [n], what follows every span.
        question_token_ids: int64 [2], the answers "goes on" and "ends" to the continuation question; int64 [0] for a
            model that was not trained to answer it.
    """

    prefix_token_ids: IntArray
    symbol_token_ids: IntArray
    cue_token_ids: IntArray
    question_token_ids: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_tokens(self) -> int:
        """Number of positions that prefix and cue take."""
        return len(self.prefix_token_ids) + len(self.cue_token_ids)


@dataclass(frozen=True)
class PromptTemplate:
    """The parts of the prompt; each may be replaced, and of an empty part nothing is left.

    Attributes:
        instruction: first line of the prompt.
        types_header: stands before the list of entity types.
        text_header: stands before the document.
        span_header: stands before the span.
        answer_cue: follows the span, before the label symbol that the model gives.
        none_label: what a span without a label is.
        chat_template: whether the prompt is the user's turn in the tokenizer's chat template.
    """

    instruction: str = str(PROMPT_DEFAULTS["instruction"])
    types_header: str = str(PROMPT_DEFAULTS["types_header"])
    text_header: str = str(PROMPT_DEFAULTS["text_header"])
    span_header: str = str(PROMPT_DEFAULTS["span_header"])
    answer_cue: str = str(PROMPT_DEFAULTS["answer_cue"])
    none_label: str = str(PROMPT_DEFAULTS["none_label"])
    chat_template: bool = bool(PROMPT_DEFAULTS["chat_template"])

    @classmethod
    def from_config(cls, config: DecodNERConfig) -> "PromptTemplate":
        """The template that a model was saved with."""
        return cls(**config.prompt)

    @property
    def document_head(self) -> str:
        """What stands between the prefix and the document."""
        return f"{self.text_header} " if self.text_header else ""

    @property
    def document_tail(self) -> str:
        """What stands between the document and a span, which brings its own space."""
        return f"\n{self.span_header}"

    def prefix_text(self, labels: Mapping[str, str | None], symbols: LabelSymbols) -> str:
        """The instruction and the entity types, up to and with the blank line before the document.

        Args:
            labels: label name -> description or None, in prompt order.
            symbols: the labels' symbols.

        Raises:
            ValueError: labels that are not valid, that hold the none label, or that are not as many as the symbols.
        """
        named = normalize_labels(labels)
        if self.none_label in named:
            raise ValueError(f"{self.none_label!r} is the none label: no entity type may have its name.")
        if len(symbols.symbols) != len(named) + 1:
            raise ValueError(
                f"{len(named)} labels and the none label need {len(named) + 1} symbols, not {len(symbols.symbols)}: "
                f"call choose_symbols(tokenizer, {len(named)})."
            )
        items = [
            f"{symbol}. {name} ({description})" if description else f"{symbol}. {name}"
            for symbol, (name, description) in zip(symbols.symbols[1:], named.items(), strict=True)
        ]
        types = " ".join([self.types_header, *items, f"{symbols.symbols[0]}. {self.none_label}"])
        return "\n".join(line for line in (self.instruction, types.lstrip()) if line) + "\n\n"

    def encode_prefix(
        self, tokenizer: PreTrainedTokenizerBase, labels: Mapping[str, str | None], symbols: LabelSymbols
    ) -> IntArray:
        """Token ids, int64 [P], of the prefix that all documents share.

        It opens with what the tokenizer puts before a text (a beginning token, say) or, with `chat_template`, with
        what the chat template puts before the user's message.

        Raises:
            ValueError: as `prefix_text`, or a chat template that is missing or does not render the message once.
        """
        text = self.prefix_text(labels, symbols)
        if self.chat_template:
            return opening_ids(tokenizer, self._chat_frame(tokenizer)[0] + text, special_tokens=False)
        return opening_ids(tokenizer, text)

    def encode_cue(self, tokenizer: PreTrainedTokenizerBase) -> IntArray:
        """Token ids, int64 [n], that follow every span before the model gives a label symbol; often none.

        With `chat_template` they close the user's turn and open the assistant's, and the answer cue comes last.

        Raises:
            ValueError: as `encode_prefix`.
        """
        closing = self._chat_frame(tokenizer)[1] if self.chat_template else ""
        return continuation_ids(tokenizer, [closing + self.answer_cue], CUE_ANCHORS)[0]

    def _chat_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Returns what the chat template puts before and after the user's message."""
        check_tokenizer(tokenizer)
        if not tokenizer.chat_template:
            raise ValueError(
                "the prompt asks for a chat template, but the tokenizer has none: "
                "set tokenizer.chat_template, or chat_template=False in the prompt."
            )
        message = [{"role": "user", "content": CHAT_MARK}]
        rendered: Any = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, *after = str(rendered).split(CHAT_MARK)
        if len(after) != 1:
            raise ValueError(f"the chat template renders the user's message {len(after)} times; once is needed.")
        return before, after[0]


def choose_symbols(tokenizer: PreTrainedTokenizerBase, num_labels: int) -> LabelSymbols:
    """Chooses symbols for the none label and `num_labels` labels, each one token and no two the same.

    The numbers 0 .. num_labels where each is one token; else the digits, the letters A-Z and a-z and then other
    readable strings of the vocabulary. Always the same for the same tokenizer.

    Raises:
        TooManyLabelsError: more labels than the tokenizer has symbols for.
        ValueError: a tokenizer that is not fast, or no label.
    """
    check_tokenizer(tokenizer)
    check_count("num_labels", num_labels)
    chosen = _numbers(tokenizer, num_labels + 1)
    if len(chosen) <= num_labels:
        chosen = {}
        for symbols in _symbol_pool(tokenizer):
            taken = set(chosen.values())
            chosen |= {text: token for text, token in _single_tokens(tokenizer, symbols).items() if token not in taken}
            if len(chosen) > num_labels:
                break
    if len(chosen) <= num_labels:
        raise TooManyLabelsError(num_labels, max(len(chosen) - 1, 0))
    symbols = list(chosen)[: num_labels + 1]
    return LabelSymbols(tuple(symbols), np.array([chosen[symbol] for symbol in symbols], np.int64))


def continuation_token_ids(tokenizer: PreTrainedTokenizerBase) -> IntArray:
    """Returns the tokens, int64 [2], that answer the continuation question after a span: "goes on", then "ends".

    They are marks and no words or numbers, of which label symbols are made; always the same for the same tokenizer.

    Raises:
        ValueError: a tokenizer in which fewer than two of the marks are one token each.
    """
    check_tokenizer(tokenizer)
    found = list(_single_tokens(tokenizer, CONTINUATION_MARKS).values())
    if len(found) < 2:
        raise ValueError(
            f"this tokenizer has {len(found)} of the marks {' '.join(CONTINUATION_MARKS)} as single tokens, but the "
            "continuation question needs two: leave it out."
        )
    return np.array(found[:2], np.int64)


def shard_labels(labels: Mapping[str, str | None], max_labels: int) -> list[dict[str, str | None]]:
    """Cuts labels into as few shards as possible of at most `max_labels` each, in order and of like size."""
    check_count("max_labels", max_labels)
    items = list(normalize_labels(labels).items())
    count = -(-len(items) // max_labels)
    bounds = [len(items) * shard // count for shard in range(count + 1)]
    return [dict(items[start:end]) for start, end in pairwise(bounds)]


class LabelPrompts:
    """Encodes the prompts of label sets, and keeps those of the sets asked for last. Threads may share it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        max_positions: int | None = None,
        continuation: bool = False,
    ) -> None:
        """Takes the stage's tools.

        Args:
            tokenizer: a fast tokenizer.
            template: the prompt's parts.
            max_positions: of the model; a label set that needs several prompts fills at most half of them.
            continuation: whether the model answers the continuation question.
        """
        self.tokenizer, self.template, self.max_positions = tokenizer, template, max_positions
        self.question = continuation_token_ids(tokenizer) if continuation else np.empty(0, np.int64)
        self._kept: OrderedDict[Labels, tuple[EncodedPrompt, ...]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles without the prompts kept and their lock."""
        return type(self), (self.tokenizer, self.template, self.max_positions, bool(self.question.size))

    def __call__(self, labels: Labels) -> tuple[EncodedPrompt, ...]:
        """Returns the prompts of a label set: one, or as many shards as symbols and positions make necessary.

        Raises:
            ValueError: a tokenizer without symbols, labels that `PromptTemplate.prefix_text` refuses, or a prompt of
                a single label that leaves no position for a document and a span.
        """
        with self._lock:
            if labels not in self._kept:
                self._kept[labels] = self._encode(dict(labels))
                if len(self._kept) > KEPT_LABEL_SETS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(labels)
            return self._kept[labels]

    def _encode(self, labels: dict[str, str | None]) -> tuple[EncodedPrompt, ...]:
        most = len(labels)  # per prompt
        while True:
            try:
                prompts = self._shards(labels, most)
            except TooManyLabelsError as error:
                if not 0 < error.available < most:
                    raise
                most = error.available
                continue
            if prompts is not None:
                self._check_room(prompts)
                return prompts
            most = -(-most // 2)

    def _shards(self, labels: dict[str, str | None], most: int) -> tuple[EncodedPrompt, ...] | None:
        """Encodes prompts of at most `most` labels each; None if one of them fills more than half of the positions."""
        cue = self.template.encode_cue(self.tokenizer)
        symbols: dict[int, LabelSymbols] = {}  # by number of labels; shards have one of two
        prompts = []
        for shard in shard_labels(labels, most):
            if len(shard) not in symbols:
                symbols[len(shard)] = choose_symbols(self.tokenizer, len(shard))
            prefix = self.template.encode_prefix(self.tokenizer, shard, symbols[len(shard)])
            if most > 1 and self.max_positions is not None and len(prefix) > self.max_positions // 2:
                return None
            prompts.append(EncodedPrompt(prefix, symbols[len(shard)].token_ids, cue, self.question))
        return tuple(prompts)

    def _check_room(self, prompts: Sequence[EncodedPrompt]) -> None:
        if self.max_positions is None:
            return
        frame = f"{self.template.document_head}{self.template.document_tail}"
        least = len(continuation_ids(self.tokenizer, [frame])[0]) + 2  # a text and a span of one token each
        longest = max(prompts, key=lambda prompt: prompt.num_tokens)
        if longest.num_tokens + least > self.max_positions:
            raise ValueError(
                f"the prompt of {len(longest.symbol_token_ids) - 1} label(s) takes {longest.num_tokens} tokens and a "
                f"document at least {least} more, but the model has {self.max_positions} positions: shorten the "
                "label's name or description or the prompt's instruction, or use a model with more positions."
            )


def _numbers(tokenizer: PreTrainedTokenizerBase, count: int) -> dict[str, int]:
    """The numbers 0 .. count - 1 and their tokens; nothing if one of them is not a token of its own.

    They are tried in steps, so that the work is bounded by the numbers in the vocabulary and not by `count`.
    """
    chosen: dict[str, int] = {}
    while len(chosen) < count:
        step = range(len(chosen), min(len(chosen) + SYMBOLS_AT_ONCE, count))
        found = _single_tokens(tokenizer, [str(number) for number in step])
        if len(found) < len(step) or not set(found.values()).isdisjoint(chosen.values()):
            return {}
        chosen |= found
    return chosen


def _single_tokens(tokenizer: PreTrainedTokenizerBase, symbols: Sequence[str]) -> dict[str, int]:
    """Those of `symbols` that are one known token each, and their tokens; the first of those that share a token."""
    found: dict[int, str] = {}
    for symbol, ids in zip(symbols, continuation_ids(tokenizer, symbols), strict=True):
        if len(ids) == 1 and int(ids[0]) != tokenizer.unk_token_id:
            found.setdefault(int(ids[0]), symbol)
    return {symbol: token for token, symbol in found.items()}


def _symbol_pool(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[str]]:
    """Possible symbols, the most readable first, in lists so that the vocabulary is only searched where it must be."""
    yield [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase]
    backend: Any = tokenizer.backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=False)
    plain = sorted(
        (text for text in vocabulary if len(text) > 1 and text.isascii() and text.isalnum()),
        key=lambda text: (not text.isdigit(), len(text), text),
    )
    for start in range(0, len(plain), SYMBOLS_AT_ONCE):
        yield plain[start : start + SYMBOLS_AT_ONCE]
    others = [[token] for text, token in vocabulary.items() if not (text.isascii() and text.isalnum())]
    yield sorted({text for text in backend.decode_batch(others) if text.isalnum()}, key=lambda text: (len(text), text))
