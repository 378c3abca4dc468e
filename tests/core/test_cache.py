import pytest
import torch

from decodner_hf import DualBufferCache
from decodner_hf.core.cache import MIN_CAPACITY


def entries(length, seed=0, rows=1, heads=2, sizes=(4, 6), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, length, size, generator=generator).to(dtype) for size in sizes]


def filled(length, **options):
    cache = DualBufferCache(**options)
    cache.write_prefix(0, 0, *entries(length))
    cache.commit(length)
    return cache


def test_a_prefix_grows_by_further_chains_and_is_cropped_back():
    first, second = entries(5), entries(3, seed=1)
    cache = filled(5)
    cache.write_prefix(0, 0, *second)
    assert cache.get_seq_length() == 5  # not before it is committed
    cache.commit(3)
    for read, parts in zip(cache.read_prefix(0, 0), zip(first, second, strict=True), strict=True):
        assert torch.equal(read, torch.cat(parts, dim=2))
    cache.crop(-3)
    assert cache.get_seq_length() == cache.prefix_length == 5
    assert torch.equal(cache.read_prefix(0, 0)[0], first[0])


def test_growth_beyond_the_first_buffer_keeps_what_was_there():
    cache = filled(MIN_CAPACITY)
    cache.write_prefix(0, 0, *entries(1, seed=1))
    cache.commit(1)
    assert torch.equal(cache.read_prefix(0, 0)[0][:, :, :MIN_CAPACITY], entries(MIN_CAPACITY)[0])


def test_what_was_cached_in_inference_mode_grows_outside_of_it():
    with torch.inference_mode():
        cache = filled(5)
        cache.update(*entries(2), 0)
    assert cache.update(*entries(1), 0)[0].shape[2] == 5 + 3
    cache.crop(-3)
    cache.write_prefix(0, 0, *entries(3, seed=1))


def test_calls_and_layers_do_not_share_buffers():
    cache = DualBufferCache()
    for layer in (0, 1):
        for call in (0, 1):
            cache.write_prefix(layer, call, *entries(2, seed=2 * layer + call))
    cache.commit(2)
    for layer in (0, 1):
        for call in (0, 1):
            assert torch.equal(cache.read_prefix(layer, call)[1], entries(2, seed=2 * layer + call)[1])


def test_a_prefix_of_another_kind_replaces_a_forgotten_one():
    cache = filled(5)
    cache.reset()
    assert cache.get_seq_length() == 0
    other = entries(3, heads=3, sizes=(8, 8), dtype=torch.float64)
    cache.write_prefix(0, 0, *other)
    cache.commit(3)
    assert torch.equal(cache.read_prefix(0, 0)[0], other[0])


def test_memory_is_taken_once_where_its_size_is_known():
    cache = filled(2, max_prefix_len=9)
    address = cache.read_prefix(0, 0)[0].data_ptr()
    cache.write_prefix(0, 0, *entries(7, seed=1))
    cache.commit(7)
    assert cache.read_prefix(0, 0)[0].data_ptr() == address
    cache.reset()
    cache.write_prefix(0, 0, *entries(2))
    cache.commit(2)
    assert cache.read_prefix(0, 0)[0].data_ptr() == address


def test_update_appends_behind_the_prefix_for_every_row():
    cache = filled(4, max_prefix_len=4, max_suffix_len=3, batch_size=2)
    new = entries(2, seed=1, rows=2)
    keys, values = cache.update(*new, 0)
    assert torch.equal(keys[:, :, 4:], new[0])
    assert torch.equal(values[1, :, :4], entries(4)[1][0])
    assert cache.get_seq_length() == 6
    assert cache.layers[0].get_mask_sizes(3) == (9, 0)
    assert cache.layers[0].get_max_length() == 7
    cache.update(*entries(1, seed=2, rows=2), 0)
    cache.crop(-2)
    assert (cache.get_seq_length(), cache.prefix_length) == (5, 4)
    assert torch.equal(cache.update(*entries(1, seed=3, rows=2), 0)[0][:, :, 4:5], new[0][:, :, :1])


def test_rows_of_the_suffix_are_reordered_for_beam_search():
    cache = filled(4)
    new = entries(2, seed=1, rows=2)
    cache.update(*new, 0)
    cache.reorder_cache(torch.tensor([1, 1]))
    keys, _ = cache.update(*entries(1, seed=2, rows=2), 0)
    assert torch.equal(keys[0, :, 4:6], new[0][1])


def test_rows_of_the_suffix_are_repeated_and_selected():
    cache = filled(3)
    key, value = entries(2, 1, rows=2)
    cache.update(key, value, 0)
    cache.batch_repeat_interleave(3)
    assert torch.equal(cache.layers[0].keys, key.repeat_interleave(3, dim=0))
    assert torch.equal(cache.layers[0].values, value.repeat_interleave(3, dim=0))
    cache.batch_select_indices(torch.tensor([5, 0]))
    more_key, more_value = entries(1, 2, rows=2)
    keys, values = cache.update(more_key, more_value, 0)
    assert torch.equal(keys[:, :, 3:], torch.cat([key[[1, 0]], more_key], dim=2))
    assert torch.equal(values[:, :, 3:], torch.cat([value[[1, 0]], more_value], dim=2))
    assert cache.prefix_length == 3


def small(**options):
    return lambda: filled(4, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: DualBufferCache(num_layers=0), "num_layers to be at least 1, not 0", id="no layers"),
        pytest.param(
            lambda: DualBufferCache(max_prefix_len=-1), "max_prefix_len to be at least 1", id="negative size"
        ),
        pytest.param(lambda: filled(4, max_prefix_len=6).check_fits(3), "7 tokens .4 cached, 3 new.*=6", id="prefix"),
        pytest.param(
            small(num_kv_heads=3), "num_kv_heads=3, but layer 0 of the model gives num_kv_heads=2", id="heads"
        ),
        pytest.param(small(head_dim=8), "head_dim=8, but layer 0 of the model gives head_dim=4", id="head size"),
        pytest.param(small(dtype=torch.bfloat16), "dtype=torch.bfloat16, but .*torch.float32", id="dtype"),
        pytest.param(small(device="meta"), "device=meta, but .*cpu", id="device"),
        pytest.param(
            lambda: filled(4, num_layers=1).write_prefix(1, 0, *entries(1)), "1 layers, but .* a layer 1", id="layers"
        ),
        pytest.param(
            lambda: filled(4, max_suffix_len=2).update(*entries(3), 0), "0 suffix tokens .*3 more .*=2", id="suffix"
        ),
        pytest.param(
            lambda: filled(4, batch_size=1).update(*entries(1, rows=2), 0), "2 rows .*batch_size=1", id="rows"
        ),
        pytest.param(lambda: filled(4).crop(1), "from -4 to 0 here, not 1", id="crop forward"),
        pytest.param(lambda: filled(4).crop(-5), "from -4 to 0 here, not -5", id="crop too much"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
