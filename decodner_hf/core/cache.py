"""Holds the shared prefix's keys and values: written by prefix passes, only read by span passes.

In: K/V of each attention call, handed over by the attention function. Out: views of the prefix in its buffers.
`DualBufferCache` is also an ordinary transformers `Cache`: given to a plain forward as `cache`, it appends
to a second buffer, the suffix, and returns prefix + suffix.
Knows nothing of forests, masks or models.
"""

import copy
import weakref

import torch
from transformers import Cache, CacheLayerMixin

from .validation import is_count

GROWTH = 1.5  # an unbounded buffer that must grow grows by at least this factor
MIN_CAPACITY = 256  # tokens
SPARE = 1  # tokens; the view of a full buffer would be contiguous, for which torch.compile makes a graph of its own


class KeyValueBuffer:
    """Keys [B, Hkv, capacity, Dk] and values [B, Hkv, capacity, Dv]; `limit` bounds the capacity where it is given."""

    def __init__(self, limit: int | None, growth: float = GROWTH) -> None:
        """An empty buffer; memory is taken at the first write, and `growth` times as much where it must grow."""
        self.limit, self.growth = limit, growth
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def write(self, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores key [B, Hkv, n, Dk] and value [B, Hkv, n, Dv] at positions start .. start + n - 1."""
        end = start + key.shape[2]
        self.keys = self._reserve(self.keys, key, start, end)
        self.values = self._reserve(self.values, value, start, end)
        self.keys[:, :, start:end].copy_(key)
        self.values[:, :, start:end].copy_(value)

    def read(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first `length` keys and values."""
        assert self.keys is not None, "read before write"
        assert self.values is not None, "read before write"
        return self.keys[:, :, :length], self.values[:, :, :length]

    def _reserve(self, buffer: torch.Tensor | None, new: torch.Tensor, start: int, end: int) -> torch.Tensor:
        if buffer is not None and buffer.shape[2] >= end and (start or _same_kind(buffer, new)):
            return buffer
        held = 0 if buffer is None else buffer.shape[2]
        capacity = self.limit if self.limit is not None else max(end, MIN_CAPACITY, int(held * self.growth))
        capacity += SPARE
        with torch.inference_mode(False):  # what was made in inference mode could not be written outside of it
            grown = new.new_empty(*new.shape[:2], capacity, new.shape[3])
        if start:
            assert buffer is not None, "tokens are cached, but no buffer holds them"
            grown[:, :, :start].copy_(buffer[:, :, :start])
        return grown


class DualBufferLayer(CacheLayerMixin):
    """One decoder layer's prefix, a buffer per attention call (DiffLlama makes two a layer), and its suffix."""

    is_sliding = False
    is_croppable = True

    def __init__(self, max_prefix_len: int | None, max_suffix_len: int | None) -> None:
        """An empty layer; the limits are in tokens, None for unbounded."""
        super().__init__()
        self.max_prefix_len = max_prefix_len
        self.calls: list[KeyValueBuffer] = []
        self.prefix_length = 0
        self.suffix = KeyValueBuffer(max_suffix_len)
        self.suffix_length = 0

    def prefix_buffer(self, call: int) -> KeyValueBuffer:
        """The prefix buffer of this layer's attention call number `call`, counted from 0 within a forward."""
        while len(self.calls) <= call:
            self.calls.append(KeyValueBuffer(self.max_prefix_len))
        return self.calls[call]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:  # noqa: ARG002
        """Notes dtype and device, as transformers expects of a layer in use."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,  # noqa: ARG002 - the signature is transformers'
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [B, Hkv, n, D] to the suffix; returns prefix + suffix, the prefix repeated over the batch."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check_prefix_fits(key_states, value_states)
        end = self.suffix_length + key_states.shape[2]
        if self.suffix.limit is not None and end > self.suffix.limit:
            raise ValueError(
                f"{self.suffix_length} suffix tokens are cached and {key_states.shape[2]} more were given, but this "
                f"cache holds max_suffix_len={self.suffix.limit}: make it larger, or crop or reset it."
            )
        self.suffix.write(self.suffix_length, key_states, value_states)
        self.suffix_length = end
        self.keys, self.values = self.suffix.read(end)
        if not self.prefix_length:
            return self.keys, self.values
        prefix_keys, prefix_values = self.prefix_buffer(0).read(self.prefix_length)
        batch = key_states.shape[0]
        return (
            torch.cat([prefix_keys.expand(batch, -1, -1, -1), self.keys], dim=2),
            torch.cat([prefix_values.expand(batch, -1, -1, -1), self.values], dim=2),
        )

    def _check_prefix_fits(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """What models cache must be what their attention sees, for the prefix was stored by the latter."""
        if not self.prefix_length:
            return
        keys, values = self.prefix_buffer(0).read(self.prefix_length)
        given = (key_states.shape[1], key_states.shape[3], value_states.shape[1], value_states.shape[3])
        if len(self.calls) > 1 or given != (keys.shape[1], keys.shape[3], values.shape[1], values.shape[3]):
            raise ValueError(
                "this model caches other keys and values than its attention sees (DiffLlama, JetMoe and latent "
                "attention do), so that an encoded prefix cannot serve as past_key_values; it serves span scoring."
            )

    def get_seq_length(self) -> int:
        """Cached tokens, prefix and suffix together."""
        return self.prefix_length + self.suffix_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of keys a query of `query_length` tokens meets, offset of the first): as transformers defines it."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Most tokens this layer can hold, -1 where it is unbounded."""
        if self.max_prefix_len is None or self.suffix.limit is None:
            return -1
        return self.max_prefix_len + self.suffix.limit

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the rows of the suffix, for beam search; the prefix is the same for every row."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices` of the suffix, [n] or a boolean mask [B], in that order."""
        if self.suffix_length:
            keys, values = self.suffix.read(self.suffix_length)
            self.suffix.write(0, keys[indices.to(keys.device)], values[indices.to(values.device)])
            self.keys, self.values = self.suffix.read(self.suffix_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the suffix `repeats` times, as sampling several continuations of a prompt does."""
        if self.suffix_length:
            rows = torch.arange(self.suffix.read(self.suffix_length)[0].shape[0])
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def keep(self, length: int) -> None:
        """Keeps the first `length` tokens, forgetting suffix before prefix."""
        self.suffix_length = max(0, min(self.suffix_length, length - self.prefix_length))
        self.prefix_length = min(self.prefix_length, length)

    def reset(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.keep(0)


class DualBufferCache(Cache):
    """Prefix and suffix buffers for every layer of a decoder; all arguments are optional.

    A prefix pass writes, any number of span passes read. A prefix may grow by a further chain (an instruction, then a
    document) and be cropped back. Sizes that are not given are taken from what is written; a buffer without a limit
    grows as needed.

    Args:
        num_layers: number of decoder layers.
        num_kv_heads: key/value heads per layer (Hkv).
        head_dim: size of a key head (D).
        max_prefix_len: tokens reserved for the prefix.
        max_suffix_len: longest span in tokens, and the tokens that `update` can append.
        batch_size: most rows of a span batch.
        dtype: dtype of keys and values.
        device: device of keys and values.

    Raises:
        ValueError: a size below 1, or, when used, a model, dtype or length that does not fit what was given.
    """

    def __init__(
        self,
        num_layers: int | None = None,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        max_prefix_len: int | None = None,
        max_suffix_len: int | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """See the class docstring."""
        sizes = {
            "num_layers": num_layers,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "max_prefix_len": max_prefix_len,
            "max_suffix_len": max_suffix_len,
            "batch_size": batch_size,
        }
        for name, size in sizes.items():
            if size is not None and not is_count(size):
                raise ValueError(f"DualBufferCache needs {name} to be at least 1, not {size!r}.")
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self.max_prefix_len, self.max_suffix_len, self.max_rows = max_prefix_len, max_suffix_len, batch_size
        self.kv_dtype = dtype
        self.kv_device = torch.device(device) if device is not None else None
        self.prefix_length = 0
        self._owner: weakref.ref[object] | None = None
        super().__init__(layers=[DualBufferLayer(max_prefix_len, max_suffix_len) for _ in range(num_layers or 0)])

    def layer(self, layer_idx: int) -> DualBufferLayer:
        """The layer numbered `layer_idx`, made when first asked for where `num_layers` was not given."""
        if self.num_layers is not None and layer_idx >= self.num_layers:
            raise ValueError(
                f"this cache was made for {self.num_layers} layers, but the model has a layer {layer_idx}: "
                "it is a cache of another model; make one from this model's config."
            )
        while len(self.layers) <= layer_idx:
            self.layers.append(DualBufferLayer(self.max_prefix_len, self.max_suffix_len))
        found: DualBufferLayer = self.layers[layer_idx]
        return found

    def claim(self, model: object) -> None:
        """Notes which model encodes the prefix; `belongs_to` tells later."""
        self._owner = weakref.ref(model)

    def belongs_to(self, model: object) -> bool:
        """Whether `model` encoded the prefix; an empty cache, or one that was unpickled, counts as any model's."""
        return not self.prefix_length or self._owner is None or self._owner() is model

    def __getstate__(self) -> dict[str, object]:
        """Pickles without the reference to the model."""
        return self.__dict__ | {"_owner": None}

    def __deepcopy__(self, memo: dict[int, object]) -> "DualBufferCache":
        """Copies the buffers; the copy belongs to the same model."""
        new: DualBufferCache = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name != "_owner"}
        new._owner = self._owner
        return new

    def check_fits(self, new_tokens: int) -> None:
        """Raises a ValueError if `new_tokens` more prefix tokens do not fit, or if a suffix stands in their way."""
        suffix = self.get_seq_length() - self.prefix_length
        if suffix:
            raise ValueError(f"the cache holds {suffix} suffix tokens after its prefix: crop or reset it first.")
        if self.max_prefix_len is not None and self.prefix_length + new_tokens > self.max_prefix_len:
            raise ValueError(
                f"the prefix would have {self.prefix_length + new_tokens} tokens ({self.prefix_length} cached, "
                f"{new_tokens} new), but this cache holds max_prefix_len={self.max_prefix_len}: make it larger or "
                "shorten the prefix."
            )

    def write_prefix(self, layer_idx: int, call: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the new tokens' key [1, Hkv, n, Dk] and value [1, Hkv, n, Dv] after the cached prefix.

        They count as cached only after `commit`, so that a pass that fails half-way leaves the cache as it was.
        """
        given = (key.shape[1], key.shape[3], key.dtype, key.device)
        expected = (self.num_kv_heads, self.head_dim, self.kv_dtype, self.kv_device)
        names = ("num_kv_heads", "head_dim", "dtype", "device")
        for name, new, own in zip(names, given, expected, strict=True):
            if own is not None and new != own and not _same_device(new, own):
                raise ValueError(
                    f"this cache was made with {name}={own}, but layer {layer_idx} of the model gives {name}={new}: "
                    "it is a cache of another model or dtype; make one that matches, or leave the argument out."
                )
        self.layer(layer_idx).prefix_buffer(call).write(self.prefix_length, key, value)

    def read_prefix(self, layer_idx: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The committed prefix's key [1, Hkv, P, Dk] and value [1, Hkv, P, Dv], as views."""
        return self.layer(layer_idx).prefix_buffer(call).read(self.prefix_length)

    def commit(self, new_tokens: int) -> None:
        """Counts the `new_tokens` last written as part of the prefix."""
        self.prefix_length += new_tokens
        for layer in self.layers:
            layer.prefix_length = self.prefix_length

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens, suffix before prefix; as in transformers, never positive."""
        held = self.get_seq_length()
        if not is_count(tokens_to_remove, least=-held) or tokens_to_remove > 0:
            raise ValueError(
                f"crop takes minus the number of tokens to remove, from {-held} to 0 here, not {tokens_to_remove!r}."
            )
        for layer in self.layers:
            layer.keep(held + tokens_to_remove)
        self.prefix_length = min(self.prefix_length, held + tokens_to_remove)

    def reset(self) -> None:
        """Forgets prefix and suffix; the memory stays."""
        self._owner = None
        for layer in self.layers:
            layer.reset()
        self.prefix_length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cached tokens, prefix and suffix together."""
        return self.layers[layer_idx].get_seq_length() if len(self.layers) > layer_idx else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends to the suffix of layer `layer_idx`; see `DualBufferLayer.update`."""
        if self.max_rows is not None and key_states.shape[0] > self.max_rows:
            raise ValueError(f"{key_states.shape[0]} rows were given, but this cache has batch_size={self.max_rows}.")
        return self.layer(layer_idx).update(key_states, value_states, *args, **kwargs)


def _same_kind(buffer: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether `new` could be a part of `buffer`: all but their lengths agree."""
    sizes = (buffer.shape[:2], buffer.shape[3]) == (new.shape[:2], new.shape[3])
    return sizes and buffer.dtype == new.dtype and buffer.device == new.device


def _same_device(one: object, other: object) -> bool:
    """Whether both are devices and the same one, "cuda" standing for any CUDA device."""
    if not isinstance(one, torch.device) or not isinstance(other, torch.device):
        return False
    return bool(one.type == other.type and (one.index is None or other.index is None))
