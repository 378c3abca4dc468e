from decodner_hf.data.decontamination import drop_overlaps
from decodner_hf.data.examples import Example


def test_examples_that_share_ten_words_in_a_row_are_dropped():
    words = [f"w{number}" for number in range(30)]
    held = [Example(words[:20], ()), Example("One two.", ())]
    train = [
        Example(["x", *words[3:13], "y"], ()),
        Example(["x", *words[3:12], "y"], ()),
        Example(" ".join(words[5:15]).upper().replace(" ", ", "), ()),
        Example(words[20:], ()),
        Example("One two.", ()),
    ]
    kept, dropped = drop_overlaps(train, [held])
    assert dropped == 2
    assert kept == [train[1], train[3], train[4]]
