"""Makes the prompts of training: the types that an example is asked for, and the tokens that ask.

In: encoded sources and a tokenizer. Out: `AskedTypes` of all examples, drawn at once, and an `EncodedPrompt` of each.
Fixed prompts ask every document of a row for the same labels. Open prompts ask each example for types of its own:
some that occur and some that do not, in any order and number, under any symbols, sometimes described.
Knows nothing of rows or models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..core.arrays import BoolArray, IntArray, bounds_of, ramp_of
from ..core.prompting import (
    EncodedPrompt,
    LabelSymbols,
    PromptTemplate,
    TooManyLabelsError,
    choose_symbols,
    continuation_token_ids,
)
from ..core.tokenization import continuation_ids
from ..core.validation import check_count, check_number
from .documents import EncodedSources, TrainingDocument

SYMBOL_POOL = 35  # symbols that open prompts draw from, besides the none label's


@dataclass(frozen=True)
class OpenTypes:
    """Says how open prompts are drawn.

    Attributes:
        max_types: most labels of a prompt.
        prompt_tokens: most tokens of a prompt; one label always has room.
        keep: probability that a type that occurs is asked for; where it is not, its spans are None.
        described: probability that a type that has a description is given with it.
        recased: probability that a name is given in lower case, or with a capital.
        random_symbols: probability that a prompt has symbols drawn at random instead of the usual ones.
        cross_source_negatives: probability that a prompt also asks for types of other sources, which rarely occur.
        generalized: probability that a type that occurs is asked for by a more general type, if it has any.
        top_level: probability that a prompt asks for the most general types alone.
        descriptions: type name -> description.
        aliases: type name -> other names for it.
        parents: type name -> the more general types that it belongs to, the nearest first; all are types themselves.
            A span's answer is its own type where that is asked for, else the nearest of these that is, else None.
    """

    max_types: int = 20
    prompt_tokens: int = 512
    keep: float = 0.9
    described: float = 0.3
    recased: float = 0.3
    random_symbols: float = 0.25
    cross_source_negatives: float = 0.0
    generalized: float = 0.5
    top_level: float = 0.25
    descriptions: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_count("max_types", self.max_types)
        if self.max_types > SYMBOL_POOL:
            raise ValueError(f"max_types must be from 1 to {SYMBOL_POOL} labels per prompt, not {self.max_types!r}.")
        chances = ("keep", "described", "recased", "random_symbols", "cross_source_negatives")
        for name in (*chances, "generalized", "top_level"):
            check_number(name, getattr(self, name), 0, 1)


@dataclass(frozen=True)
class AskedTypes:
    """The types that each of E examples is asked for.

    Attributes:
        cu_types: int64 [E + 1], where each example's types start.
        types: int64, type numbers in prompt order.
        sizes: int64 [E], no fewer tokens than the prompt has.
    """

    cu_types: IntArray
    types: IntArray
    sizes: IntArray


def fixed_prompt(
    labels: Mapping[str, str | None],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    continuation: bool = False,
) -> EncodedPrompt:
    """Returns the prompt that the pipeline uses for these labels, in one piece; `continuation`: with the question.

    Raises:
        ValueError: more labels than the tokenizer has symbols for: a fixed prompt cannot be cut into shards.
    """
    symbols = choose_symbols(tokenizer, len(labels))
    prefix = template.encode_prefix(tokenizer, labels, symbols)
    question = continuation_token_ids(tokenizer) if continuation else np.empty(0, np.int64)
    return EncodedPrompt(prefix, symbols.token_ids, template.encode_cue(tokenizer), question)


class OpenPrompter:
    """Draws open prompts and encodes them."""

    def __init__(
        self,
        settings: OpenTypes,
        encoded: EncodedSources,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
    ) -> None:
        """Measures every type's part of a prompt."""
        self.settings, self.encoded, self.tokenizer, self.template = settings, encoded, tokenizer, template
        self.cue_token_ids = template.encode_cue(tokenizer)
        self.question = continuation_token_ids(tokenizer) if encoded.continuation else np.empty(0, np.int64)
        try:
            self.pool = choose_symbols(tokenizer, SYMBOL_POOL)
        except TooManyLabelsError as error:
            self.pool = choose_symbols(tokenizer, error.available)
        self.max_types = min(settings.max_types, len(self.pool.symbols) - 1)
        self.symbols = [choose_symbols(tokenizer, count) for count in range(1, self.max_types + 1)]
        self._names = [(name, *settings.aliases.get(name, ())) for name in encoded.types]
        self._lengths = self._longest()
        self._ancestors = _ancestor_numbers(encoded.types, settings.parents)
        levels = (self._ancestors >= 0).sum(axis=1)
        numbers = np.arange(len(levels))
        self._roots = np.where(levels > 0, self._ancestors[numbers, levels - 1], numbers)
        bare = template.encode_prefix(tokenizer, {encoded.types[0]: None}, self.symbols[0])
        self._frame = len(bare) + 2

    def _longest(self) -> IntArray:
        """Returns int64 [T]: most tokens that a type takes in a prompt."""
        texts, owner = [], []
        for number, names in enumerate(self._names):
            description = self.settings.descriptions.get(names[0])
            suffix = f" ({description})" if description else ""
            forms = {form for name in names for form in (name, name.lower(), name.capitalize())}
            texts += [f" {self.pool.symbols[-1]}. {form}{suffix}" for form in forms]
            owner += [number] * len(forms)
        counts = np.array([len(ids) for ids in continuation_ids(self.tokenizer, texts)], np.int64)
        longest = np.zeros(len(self._names), np.int64)
        np.maximum.at(longest, owner, counts + 1)  # another symbol may take a token more
        return longest

    def draw(self, documents: Sequence[TrainingDocument], generator: np.random.Generator) -> AskedTypes:
        """Draws the types of all examples at once: those that occur, and a random number of others, shuffled."""
        counts = np.fromiter((len(d.types) for d in documents), np.int64, len(documents))
        owner = np.repeat(np.arange(len(documents)), counts)
        occurring = np.concatenate([np.empty(0, np.int64), *(d.types for d in documents)])
        partial = np.fromiter((d.partial for d in documents), bool, len(documents))
        kept = partial[owner] | (generator.random(len(owner)) < self.settings.keep)
        known = len(self.encoded.types)
        excluded = np.unique(owner * known + occurring)  # what occurs is never a negative
        top_level = generator.random(len(documents)) < self.settings.top_level
        owner, occurring = owner[kept], occurring[kept]
        occurring = np.where(top_level[owner], self._roots[occurring], self._generalized(occurring, generator))
        owner, occurring = np.divmod(np.unique(owner * known + occurring), known)
        excluded = np.union1d(excluded, owner * known + occurring)
        owner, types = self._with_negatives(documents, owner, occurring, excluded, top_level, generator)
        return self._shuffled(len(documents), owner, types, generator)

    def _generalized(self, occurring: IntArray, generator: np.random.Generator) -> IntArray:
        """Replaces some of these types by one of their ancestors, any as likely as another."""
        levels = (self._ancestors[occurring] >= 0).sum(axis=1)
        level = (generator.random(len(occurring)) * levels).astype(np.int64)
        higher = (levels > 0) & (generator.random(len(occurring)) < self.settings.generalized)
        generalized: IntArray = np.where(higher, self._ancestors[occurring, level], occurring)
        return generalized

    def columns(self, asked: IntArray, occurring: IntArray) -> IntArray:
        """Returns int64 [n]: which of the asked types, from 1, answers for each that occurs; 0 is None."""
        place = np.zeros(len(self.encoded.types) + 1, np.int64)
        place[asked] = 1 + np.arange(len(asked))
        found = place[np.column_stack([occurring, self._ancestors[occurring]])]  # -1 is the last place, which is 0
        answers: IntArray = found[np.arange(len(occurring)), (found > 0).argmax(axis=1)]
        return answers

    def _with_negatives(
        self,
        documents: Sequence[TrainingDocument],
        owner: IntArray,
        occurring: IntArray,
        excluded: IntArray,
        top_level: BoolArray,
        generator: np.random.Generator,
    ) -> tuple[IntArray, IntArray]:
        """Adds types that do not occur, each example's from its source's types; returns owners and types.

        `excluded` holds owner * T + type of what is no negative, `top_level` [E] says which ask for roots alone.
        """
        known, number = len(self.encoded.types), len(documents)
        source = np.fromiter((d.source for d in documents), np.int64, number)
        sizes = np.array([len(inventory) for inventory in self.encoded.inventories], np.int64)
        starts = bounds_of(sizes)
        flat = np.concatenate(self.encoded.inventories)
        tries = 2 * self.max_types
        drawn = (generator.random((number, tries)) * sizes[source][:, None]).astype(np.int64)
        drawn = flat[starts[source][:, None] + drawn]
        foreign = generator.random((number, 1)) < self.settings.cross_source_negatives
        anywhere = generator.integers(0, known, drawn.shape)
        drawn = np.where(foreign & (generator.random(drawn.shape) < 0.5), anywhere, drawn)
        drawn = np.where(top_level[:, None], self._roots[drawn], drawn)
        rows = np.repeat(np.arange(number), tries)
        keys = rows * known + drawn.ravel()
        fresh = np.zeros(len(keys), bool)
        fresh[np.unique(keys, return_index=True)[1]] = True
        fresh &= ~np.isin(keys, excluded)
        wanted = generator.integers(1, self.max_types + 1, number) - np.bincount(owner, minlength=number)
        wanted = np.maximum(wanted, np.bincount(owner, minlength=number) == 0)  # a prompt has at least one label
        rank = np.cumsum(fresh.reshape(number, tries), axis=1).ravel()
        chosen = fresh & (rank <= wanted[rows])
        owner, types = np.append(owner, rows[chosen]), np.append(occurring, drawn.ravel()[chosen])
        bare = np.setdiff1d(np.arange(number), owner)  # all that their source knows was left out
        return np.append(owner, bare), np.append(types, flat[starts[source[bare]]])

    def _shuffled(self, number: int, owner: IntArray, types: IntArray, generator: np.random.Generator) -> AskedTypes:
        """Puts each example's types in a random order, and leaves out those beyond the most that a prompt holds."""
        order = np.lexsort((generator.random(len(owner)), owner))
        owner, types = owner[order], types[order]
        within = ramp_of(np.bincount(owner, minlength=number))
        lengths = self._lengths[types]
        before = np.cumsum(lengths) - lengths  # tokens of the types before, in this prompt and all before it
        before -= before[np.searchsorted(owner, owner)]
        fits = (within == 0) | (self._frame + before + lengths <= self.settings.prompt_tokens)
        fits &= within < self.max_types
        owner, types = owner[fits], types[fits]
        counts = np.bincount(owner, minlength=number)
        sizes = self._frame + np.bincount(owner, weights=self._lengths[types], minlength=number).astype(np.int64)
        return AskedTypes(bounds_of(counts), types, sizes)

    def encode(self, types: IntArray, generator: np.random.Generator) -> EncodedPrompt:
        """Makes the prompt for these types; names, descriptions and symbols are drawn here."""
        labels: dict[str, str | None] = {}
        for number in types.tolist():
            names = self._names[number]
            name = names[int(generator.integers(len(names)))]
            if generator.random() < self.settings.recased:
                name = name.lower() if generator.random() < 0.5 else name.capitalize()
            if name in labels or name == self.template.none_label:
                name = names[0]
            described = generator.random() < self.settings.described
            labels[name] = self.settings.descriptions.get(names[0]) if described else None
        if len(labels) < len(types):  # two types under one name
            labels = {self.encoded.types[number]: None for number in types.tolist()}
        symbols = self._symbols(len(labels), generator)
        prefix = self.template.encode_prefix(self.tokenizer, labels, symbols)
        return EncodedPrompt(prefix, symbols.token_ids, self.cue_token_ids, self.question)

    def _symbols(self, count: int, generator: np.random.Generator) -> LabelSymbols:
        if generator.random() >= self.settings.random_symbols:
            return self.symbols[count - 1]
        chosen = 1 + generator.permutation(len(self.pool.symbols) - 1)[:count]
        names = (self.pool.symbols[0], *(self.pool.symbols[index] for index in chosen))
        return LabelSymbols(names, self.pool.token_ids[np.append(0, chosen)])


def _ancestor_numbers(types: Sequence[str], parents: Mapping[str, Sequence[str]]) -> IntArray:
    """Returns int64 [T, D]: the numbers of each type's ancestors, the nearest first, then -1; D is at least 1."""
    numbers = {name: number for number, name in enumerate(types)}
    deepest = max((len(parents.get(name, ())) for name in types), default=0)
    ancestors = np.full((len(types), max(1, deepest)), -1, np.int64)
    for number, name in enumerate(types):
        for level, parent in enumerate(parents.get(name, ())):
            if parent not in numbers:
                raise ValueError(f"{parent!r} is a parent of the type {name!r}, but no type itself.")
            ancestors[number, level] = numbers[parent]
    return ancestors
