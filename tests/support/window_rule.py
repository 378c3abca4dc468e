"""The rule of sliding windows and chunks as transformers states it, written apart from the code that is tested."""


def visible(window, query_positions, key_positions):
    """[M], [K] -> bool [M, K]: what the window admits; causality is not part of it."""
    queries, keys = query_positions[:, None], key_positions[None, :]
    seen = (queries >= 0) & (keys >= 0)
    if window.sliding is not None:
        seen = seen & (queries - keys < window.sliding)
    if window.chunk is not None:
        seen = seen & (queries // window.chunk == keys // window.chunk)
    return seen
