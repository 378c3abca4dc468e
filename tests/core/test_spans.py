# ruff: noqa: RUF001, SIM905 -- look-alikes are the point of these texts; as a list they take a page
import re
import string
import unicodedata
from itertools import pairwise
from time import process_time

import numpy as np
import pytest
import tokenizers_for_tests as toys
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decodner_hf.core.document_windows import NoWindowError, split_into_windows, truncate_document
from decodner_hf.core.forest import build_forest
from decodner_hf.core.prompting import PromptTemplate
from decodner_hf.core.spans import encode_documents
from decodner_hf.core.tokenization import continuation_ids
from decodner_hf.core.words import split_texts, split_words

TEMPLATE = PromptTemplate()
PIECES = (
    " |  |\n|\r\n|\t|\u00a0|\u3000|\x00|\u200b|\ufeff|(|)|.|,|-|'s|'|Steve| Jobs| Apple|Apple| U.S.|$3.5|2019| 1000|é|"
    "e\u0301|\u0301|ß|ſ|İ|ﬁ|東京|都|トヨタ|กรุงเทพ|삼성|\u1112\u1161\u11ab|ខ្មែរ|محمد|\u2067|\u2069|می\u200cخواهم|😀|"
    "👩\u200d👩\u200d👧|👍🏽|🇫🇷|🇫|❤️|\ufe0f|\u200d|𝒜|\U0010ffff|▁|Span:|\nSpan:"
).split("|")
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)
PLAIN_TEXTS = TEXTS.filter(lambda text: not re.search(r"</?s>|<unk>|<\|", text))  # no special token written out
PROPERTY = settings(max_examples=60, deadline=None)


@pytest.fixture(params=toys.ALL.values(), ids=toys.ALL.keys())
def tokenizer(request):
    return request.param()


@pytest.fixture(
    params=[*toys.BYTE_LEVEL.values(), *toys.SENTENCEPIECE.values()], ids=[*toys.BYTE_LEVEL, *toys.SENTENCEPIECE]
)
def lossless_tokenizer(request):
    return request.param()


def words_of(text):
    return [text[start:end] for start, end in zip(*split_words(text), strict=True)]


def encode(texts, tokenizer, max_span_words=3, **kwargs):
    return encode_documents(texts, tokenizer, TEMPLATE, max_span_words=max_span_words, **kwargs)


def span_tokens(candidates):
    paths = candidates.paths
    starts = paths.cu_seqlens[paths.span_path]
    assert (starts + paths.span_length <= paths.cu_seqlens[paths.span_path + 1]).all()
    bounds = zip(starts, starts + paths.span_length, strict=True)
    return [tuple(paths.token_ids[start:end].tolist()) for start, end in bounds]


def characters(candidates):
    return list(zip(candidates.start.tolist(), candidates.end.tolist(), strict=True))


def decoded(tokenizer, token_ids):
    behind_x = [*continuation_ids(tokenizer, ["x"])[0].tolist(), *token_ids]  # decoders drop a space at the beginning
    text = tokenizer.backend_tokenizer.decode(behind_x, skip_special_tokens=False)
    assert text.startswith("x ")
    return text[2:]


def same_text(text):
    return unicodedata.normalize("NFC", text.replace("▁", " "))


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The U.S. and e.g. J.R.R. Tolkien.", "The|U.S.|and|e.g.|J.R.R.|Tolkien|."),
        ("J. Smith of Plan B. He", "J|.|Smith|of|Plan|B|.|He"),
        ("J.Smith", "J|.|Smith"),
        ("Apple's O'Neil's", "Apple|'s|O'|Neil|'s"),
        ("dell'Italia l’Équipe James' don't", "dell'|Italia|l’|Équipe|James|'|don|'t"),
        ("Jean-Luc New York-based", "Jean|-|Luc|New|York|-|based"),
        ("AT&T Yahoo! (A) $3.5m 1,000, 50% 2019-05", "AT|&|T|Yahoo|!|(|A|)|$|3.5m|1,000|,|50|%|2019|-|05"),
        ("at https://a.com/x_(y)?b=1, or www.b.org.", "at|https://a.com/x_(y)?b=1|,|or|www.b.org|."),
        ("to <j.doe+x@mail.example.co.uk>.", "to|<|j.doe+x@mail.example.co.uk|>|."),
        ("https://apple.com是", "https://apple.com|是"),
        ("👩\u200d👩\u200d👧🇫🇷🇩🇪👍🏽❤️", "👩\u200d👩\u200d👧|🇫🇷|🇩🇪|👍🏽|❤️"),
        ("e\u0301le\u0300ve", "e\u0301le\u0300ve"),
        ("東京のトヨタ・カローラ", "東|京|の|トヨタ|・|カローラ"),
        ("เที่ยวกรุง", "เที่|ย|ว|ก|รุ|ง"),
        ("삼성전자는 말", "삼|성|전|자|는|말"),
        ("\u2067محمد\u2069 می\u200cخواهم", "محمد|می\u200cخواهم"),
        ("a\u200bb\ufeff\x00c\r\nd\u3000e", "a|b|c|d|e"),
        ("a_b _it_ ... ----- !! ?!", "a_b|_|it|_|...|-----|!|!|?|!"),
        ("हिन्दी क्षत्रिय", "हिन्दी|क्षत्रिय"),
        ("5\u0600 b", "5|\u0600|b"),
        (" \n", ""),
    ],
)
def test_words_are_what_entities_start_and_end_with(text, words):
    assert words_of(text) == [word for word in words.split("|") if word]


@PROPERTY
@given(TEXTS)
def test_every_visible_character_is_in_exactly_one_word(text):
    starts, ends = split_words(text)
    assert starts.dtype == ends.dtype == np.int64
    assert (starts < ends).all()
    assert (ends[:-1] <= starts[1:]).all()
    covered = np.zeros(len(text), bool)
    for start, end in zip(starts, ends, strict=True):
        covered[start:end] = True
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
    for character, inside in zip(text, covered, strict=True):
        assert inside or unicodedata.category(character) in {"Zs", "Zl", "Zp", "Cc", "Cf"}


@PROPERTY
@given(st.lists(st.lists(st.sampled_from([*PIECES, *" ,.abZ\n"]), max_size=12).map("".join), max_size=4))
@example(["(,, Apple, b), Jobs", "\u0600 a b", "\r", "a", ""])
@example(["\u0600 a", "\u0301"])
def test_words_of_many_texts_are_those_of_each(texts):
    starts, ends, counts = split_texts(texts)
    assert counts.tolist() == [len(split_words(text)[0]) for text in texts]
    for found, column in ((starts, 0), (ends, 1)):
        assert found.dtype == np.int64
        assert found.tolist() == [bound for text in texts for bound in split_words(text)[column].tolist()]


@pytest.mark.parametrize(
    "unit", ["a.", "a@", "a'", "_", "1,", "\u200d", "😀\u200d", "🇫", "เ", "\u17d2", "www.", "((", "\u0301"]
)
def test_words_take_linear_time(unit):
    steps = {}
    for count in (2_000, 16_000):
        steps[count] = min(_seconds(unit * count) for _ in range(3))
    assert steps[16_000] < 40 * steps[2_000] + 0.05


def _seconds(text):
    started = process_time()
    split_words(text)
    return process_time() - started


# ------------------------------------------------------------------ candidates


@PROPERTY
@given(TEXTS, st.integers(1, 4))
def test_candidates_are_all_word_runs(text, width):
    starts, ends = split_words(text)
    runs = [(s, e) for s in range(len(starts)) for e in range(s + 1, min(s + width, len(starts)) + 1)]
    for make in (*toys.BYTE_LEVEL.values(), *toys.SENTENCEPIECE.values()):
        (document,) = encode([text], make(), width)
        candidates = document.candidates
        assert document.text == text
        assert list(zip(candidates.start_word.tolist(), candidates.end_word.tolist(), strict=True)) == runs
        assert characters(candidates) == [(int(starts[s]), int(ends[e - 1])) for s, e in runs]


@PROPERTY
@given(PLAIN_TEXTS)
def test_span_tokens_say_what_the_span_is(text):
    for make in (*toys.BYTE_LEVEL.values(), *toys.SENTENCEPIECE.values()):
        tokenizer = make()
        (document,) = encode([text], tokenizer)
        for (start, end), tokens in zip(
            characters(document.candidates), span_tokens(document.candidates), strict=True
        ):
            assert same_text(decoded(tokenizer, tokens)) == same_text(text[start:end])
        chain = tokenizer.backend_tokenizer.decode(document.chain_token_ids.tolist(), skip_special_tokens=False)
        assert same_text(chain) == same_text(f"Text: {text}\nSpan:")


@PROPERTY
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(sorted(toys.ALL)))
def test_documents_come_out_of_a_batch_as_they_do_alone(texts, name):
    tokenizer = toys.ALL[name]()
    for document, text in zip(encode(texts, tokenizer), texts, strict=True):
        (alone,) = encode([text], tokenizer)
        assert document.text == alone.text
        for part in ("chain_token_ids", "word_starts", "word_ends"):
            np.testing.assert_array_equal(getattr(document, part), getattr(alone, part))
        assert characters(document.candidates) == characters(alone.candidates)
        for part, values in vars(alone.candidates.paths).items():
            np.testing.assert_array_equal(getattr(document.candidates.paths, part), values)


def test_the_end_of_one_document_is_not_the_space_before_the_next():
    tokenizer = toys.byte_level_single_digits()
    template = PromptTemplate(text_header="", span_header="Span: ")
    (alone,) = encode_documents(["Apple"], tokenizer, template, max_span_words=1)
    _, second = encode_documents(["Apple", "Apple"], tokenizer, template, max_span_words=1)
    assert span_tokens(second.candidates) == span_tokens(alone.candidates)
    assert decoded(tokenizer, span_tokens(second.candidates)[0]) == "Apple"


@PROPERTY
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(sorted(toys.ALL)))
def test_forest_spans_are_the_chain_and_the_span_tokens(texts, name):
    documents = encode(texts, toys.ALL[name]())
    forest = build_forest([d.chain_token_ids for d in documents], [d.candidates.paths for d in documents])
    token_ids, subtree_end = forest.token_ids.numpy(), forest.subtree_end.numpy()
    expected = [
        (*document.chain_token_ids.tolist(), *tokens)
        for document in documents
        for tokens in span_tokens(document.candidates)
    ]
    seen = [
        tuple(token_ids[: node + 1][subtree_end[: node + 1] >= node].tolist()) for node in forest.span_nodes.tolist()
    ]
    assert seen == expected


@PROPERTY
@given(TEXTS, st.data())
def test_own_spans_have_the_tokens_that_word_runs_have(text, data):
    tokenizer = toys.ALL[data.draw(st.sampled_from(sorted(toys.ALL)))]()
    (document,) = encode([text], tokenizer)
    runs = dict(zip(characters(document.candidates), span_tokens(document.candidates), strict=True))
    chosen = data.draw(st.lists(st.sampled_from(sorted(runs)), max_size=5)) if runs else []
    own, other = encode([text, text], tokenizer, spans=[chosen, None])
    assert characters(own.candidates) == chosen
    assert span_tokens(own.candidates) == [runs[span] for span in chosen]
    assert characters(other.candidates) == sorted(runs)


@PROPERTY
@given(PLAIN_TEXTS.filter(bool), st.data())
def test_own_spans_may_lie_anywhere(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    for make in (*toys.BYTE_LEVEL.values(), *toys.SENTENCEPIECE.values()):
        tokenizer = make()
        (document,) = encode([text], tokenizer, spans=[[(start, end)]])
        assert characters(document.candidates) == [(start, end)]
        assert 0 <= document.candidates.start_word[0] <= document.candidates.end_word[0] <= len(document.word_starts)
        (tokens,) = span_tokens(document.candidates)
        if same_text(text) == text.replace("▁", " "):  # composition may cross the bounds of such a span
            assert same_text(decoded(tokenizer, tokens)) == same_text(text[start:end])


def test_span_tokens_are_slices_of_the_document(tokenizer):
    text = "Steve Jobs founded Apple Inc in Cupertino"
    (document,) = encode([text], tokenizer, 8)
    chain = document.chain_token_ids.tolist()
    for tokens in span_tokens(document.candidates):
        assert any(tuple(chain[start : start + len(tokens)]) == tokens for start in range(len(chain)))
    assert len(document.candidates.paths.cu_seqlens) - 1 == len(document.word_starts)


def test_equal_spans_have_equal_tokens_wherever_they_stand(lossless_tokenizer):
    text = "Apple (Apple) \nApple  Apple\tApple, Apple"
    (document,) = encode([text], lossless_tokenizer, 1)
    spans = zip(characters(document.candidates), span_tokens(document.candidates), strict=True)
    assert len({tokens for (start, end), tokens in spans if text[start:end] == "Apple"}) == 1


def test_spans_inside_tokens_are_tokenized_by_themselves():
    tokenizer = toys.byte_level_single_digits()
    (document,) = encode(["東京"], tokenizer)
    expected = continuation_ids(tokenizer, [" 東"])[0]
    tokens = dict(zip(characters(document.candidates), span_tokens(document.candidates), strict=True))
    assert "±äº¬" in tokenizer.convert_ids_to_tokens(
        document.chain_token_ids.tolist()
    )  # 東's end and 京 are one token
    assert tokens[0, 1] == tuple(expected.tolist())


@pytest.mark.parametrize("text", ["<s>(a)</s>", "x<|end|>y <|end|>", "[SEP] [UNK]", "<0x0A>"])
def test_special_tokens_written_out_keep_their_characters(tokenizer, text):
    (document,) = encode([text], tokenizer, 99)
    starts, ends = split_words(text)
    runs = [(int(start), int(end)) for start in starts for end in ends[ends > start]]
    assert characters(document.candidates) == runs
    assert all(span_tokens(document.candidates))


def test_words_given_as_such(tokenizer):
    (document,) = encode([["New York", "U", "2019-05"]], tokenizer, 2, is_split_into_words=True)
    assert document.text == "New York U 2019-05"
    assert characters(document.candidates) == [(0, 8), (0, 10), (9, 10), (9, 18), (11, 18)]
    assert document.candidates.end_word.tolist() == [1, 2, 2, 3, 3]
    (document,) = encode([["New York", "U"]], tokenizer, is_split_into_words=True, spans=[[(1, 2), (0, 2)]])
    assert characters(document.candidates) == [(9, 10), (0, 10)]


def test_blank_documents_have_no_candidates(tokenizer):
    for document in encode(["", " \n\t ", "\u200b"], tokenizer):
        assert document.candidates.num_spans == document.candidates.longest == 0
        assert document.candidates.paths.cu_seqlens.tolist() == [0]
        assert len(document.chain_token_ids)
    assert encode([], tokenizer) == []


def test_spans_without_tokens_are_no_candidates():
    tokenizer = toys.word_piece()
    (document,) = encode(["a \ufffd b"], tokenizer, 1)  # this tokenizer drops the character in the middle
    assert characters(document.candidates) == [(0, 1), (4, 5)]
    with pytest.raises(ValueError, match="no token for the span '\ufffd'"):
        encode(["a \ufffd b"], tokenizer, spans=[[(2, 3)]])


@pytest.mark.parametrize(
    ("documents", "arguments", "message"),
    [
        ("a text", {}, "put a single document in a list"),
        (None, {}, "must be a list, not NoneType"),
        (["a", None], {}, "document 1: the text is NoneType"),
        (["a", b"b"], {}, "document 1: the text is bytes"),
        (["ab\ud800"], {}, r"lone surrogate '\\ud800' at character 2"),
        (["a"], {"max_span_words": 0}, "at least 1, not 0"),
        (["a"], {"max_span_words": True}, "at least 1, not True"),
        (["a b"], {"is_split_into_words": True}, "document 0: the words must be a list"),
        ([["a", ""]], {"is_split_into_words": True}, "document 0: word 1 is an empty string"),
        ([["a", 3]], {"is_split_into_words": True}, "document 0: word 1 is int"),
        (["a", "b"], {"spans": [[(0, 1)]]}, "2 documents but 1 lists of spans"),
        (["abc"], {"spans": [[(0, 4)]]}, r"document 0: span \(0, 4\) is empty or out of range: .* 3 characters"),
        (["abc"], {"spans": [[(1, 1)]]}, "empty or out of range"),
        (["abc"], {"spans": [[(-1, 1)]]}, "empty or out of range"),
        (["abc"], {"spans": [[(0.0, 1.0)]]}, "pairs of integers"),
        (["abc"], {"spans": [[(0, 1), (0, 1, 2)]]}, "pairs of integers"),
        (["abc"], {"spans": [[1, 2]]}, "pairs of integers"),
        (["abc"], {"spans": [["ab"]]}, "pairs of integers"),
        ([["a", "b"]], {"spans": [[(0, 3)]], "is_split_into_words": True}, "<= 2 words"),
    ],
)
def test_bad_documents_and_spans_are_refused(documents, arguments, message):
    with pytest.raises(ValueError, match=message):
        encode(documents, toys.byte_level_single_digits(), **arguments)


# ------------------------------------------------------------------ windows


def tokens_by_span(documents):
    spans = [
        (*span, tokens)
        for document in documents
        for span, tokens in zip(characters(document.candidates), span_tokens(document.candidates), strict=True)
    ]
    return sorted(spans)


@settings(max_examples=40, deadline=None)
@given(st.lists(PLAIN_TEXTS, min_size=3, max_size=8).map(" ".join), st.integers(0, 60), st.sampled_from([0, None, 6]))
def test_windows_share_out_the_candidates(text, extra, stride):
    for make in (toys.byte_level_three_digits, toys.sentencepiece_legacy):
        tokenizer = make()
        (document,) = encode([text], tokenizer)
        limit = 2 * document.candidates.longest + 20 + extra
        try:
            windows = split_into_windows(document, limit, tokenizer, TEMPLATE, stride=stride)
        except NoWindowError:  # a gap or a word that no window holds
            continue
        assert tokens_by_span(windows) == tokens_by_span([document])
        for window in windows:
            assert window.text == text
            assert len(window.chain_token_ids) + window.candidates.longest <= limit
            chain = same_text(tokenizer.backend_tokenizer.decode(window.chain_token_ids.tolist()))
            assert all(same_text(text[start:end]) in chain for start, end in characters(window.candidates))


def numbered_document(tokenizer, words=60, width=4):
    (document,) = encode([" ".join(f"w{number}x" for number in range(words))], tokenizer, width)
    return document


def window_words(window, tokenizer):
    chain = tokenizer.backend_tokenizer.decode(window.chain_token_ids.tolist())
    numbers = [int(number) for number in re.findall(r"w(\d+)x", chain)]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    return numbers[0], numbers[-1] + 1


def test_the_spans_of_a_word_are_scored_where_they_have_most_context(lossless_tokenizer):
    document = numbered_document(lossless_tokenizer)
    limit = len(document.chain_token_ids) // 3 + document.candidates.longest
    windows = split_into_windows(document, limit, lossless_tokenizer, TEMPLATE)
    bounds = [window_words(window, lossless_tokenizer) for window in windows]
    assert len(windows) > 3
    assert (bounds[0][0], bounds[-1][1]) == (0, 60)
    assert all(end - start >= 4 for (_, end), (start, _) in pairwise(bounds))

    def context(window, start, end):
        first, last = bounds[window]
        if not first <= start < end <= last:
            return -1
        return min(start - first if first else 99, last - end if last < 60 else 99)

    reach = dict(
        zip(document.candidates.start_word, document.candidates.end_word, strict=True)
    )  # the longest comes last
    for number, window in enumerate(windows):
        for start in window.candidates.start_word:
            contexts = [context(other, start, reach[start]) for other in range(len(windows))]
            assert number == int(np.argmax(contexts))


def test_a_span_and_its_shorter_prefixes_share_a_window():
    tokenizer = toys.byte_level_single_digits()
    (document,) = encode(["well-known Jean-Luc met (O'Neil's) 東京 in 1999. " * 12], tokenizer, 6)
    limit = len(document.chain_token_ids) // 3 + document.candidates.longest
    windows = split_into_windows(document, limit, tokenizer, TEMPLATE)
    assert len(windows) > 3
    owners = {}
    for number, window in enumerate(windows):
        for start in window.candidates.start_word.tolist():
            owners.setdefault(start, set()).add(number)
    assert {len(numbers) for numbers in owners.values()} == {1}


def test_a_document_that_fits_is_its_own_window(tokenizer):
    document = numbered_document(tokenizer)
    limit = len(document.chain_token_ids) + document.candidates.longest
    assert split_into_windows(document, limit, tokenizer, TEMPLATE) == [document]
    assert truncate_document(document, limit, tokenizer, TEMPLATE) == (document, len(document.text))
    assert len(split_into_windows(document, limit - 1, tokenizer, TEMPLATE)) == 2


def test_windows_that_cut_through_tokens_keep_to_the_limit():
    tokenizer = toys.byte_level_single_digits()
    (document,) = encode(["東京都" * 30], tokenizer)
    for limit in range(20, 60):
        windows = split_into_windows(document, limit, tokenizer, TEMPLATE)
        assert max(len(window.chain_token_ids) + window.candidates.longest for window in windows) <= limit
        assert tokens_by_span(windows) == tokens_by_span([document])


def test_truncation_keeps_the_beginning_and_says_how_much(lossless_tokenizer):
    document = numbered_document(lossless_tokenizer)
    limit = len(document.chain_token_ids) // 2
    kept, length = truncate_document(document, limit, lossless_tokenizer, TEMPLATE)
    first, last = window_words(kept, lossless_tokenizer)
    assert first == 0
    assert length == document.word_ends[last - 1]
    assert len(kept.chain_token_ids) + kept.candidates.longest <= limit
    expected = [span for span in tokens_by_span([document]) if span[1] <= length]
    assert tokens_by_span([kept]) == expected


def test_blank_stretches_do_not_stop_windows():
    tokenizer = toys.byte_level_single_digits()
    for text in (" " * 400, "\n" * 400 + "Steve" + "\t" * 400):
        (document,) = encode([text], tokenizer)
        (window,) = split_into_windows(document, 30, tokenizer, TEMPLATE)
        assert tokens_by_span([window]) == tokens_by_span([document])
        assert len(window.chain_token_ids) <= 30


def test_windows_that_cannot_hold_a_word_are_refused():
    tokenizer = toys.byte_level_single_digits()
    (document,) = encode(["Steve Jobs " + "xyz" * 50 + " said so"], tokenizer, spans=[[(0, 5)]])
    with pytest.raises(NoWindowError, match=r"words 2 to 2 take \d+ tokens, but a window has room for"):
        split_into_windows(document, 60, tokenizer, TEMPLATE)
    with pytest.raises(ValueError, match="room for 1 beside the prompt"):
        split_into_windows(document, 3, tokenizer, TEMPLATE)


@pytest.mark.parametrize("stride", [0, 6, 20])
def test_windows_repeat_as_many_tokens_as_the_stride_says(stride):
    tokenizer = toys.byte_level_single_digits()
    letters = [string.ascii_lowercase[number * 7 % 26] for number in range(200)]  # two tokens each: a space, a letter
    (document,) = encode([" ".join(letters)], tokenizer, max_span_words=1)
    windows = split_into_windows(document, 80, tokenizer, TEMPLATE, stride=stride)
    texts = [tokenizer.backend_tokenizer.decode(window.chain_token_ids.tolist()) for window in windows]
    words = [text.removeprefix("Text: ").removesuffix("\nSpan:").split() for text in texts]
    repeated = next(count for count in range(1, 40) if words[0][-count:] == words[1][:count])
    assert stride <= 2 * repeated <= stride + 2  # whole words, and no fewer than the longest candidate has
    with pytest.raises(ValueError, match="stride=80 leaves nothing new for a window"):
        split_into_windows(document, 80, tokenizer, TEMPLATE, stride=80)


@pytest.mark.parametrize("text", ["", "  \n"])
@pytest.mark.parametrize("room", [-3, 0, 2])
def test_a_blank_document_without_room_for_its_frame_is_refused(text, room):
    tokenizer = toys.byte_level_single_digits()
    (document,) = encode([text], tokenizer)
    for cut in (split_into_windows, truncate_document):
        with pytest.raises(NoWindowError, match="a document's frame in the prompt takes"):
            cut(document, room, tokenizer, TEMPLATE)
