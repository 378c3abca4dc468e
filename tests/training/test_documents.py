import pytest
from tiny_training import OVERLONG, SENTENCES, encoded

from decodner_hf.core.label_head import UNLABELLED
from decodner_hf.data.document_context import Context
from decodner_hf.data.examples import Example


def test_unmatched_gold_spans_are_counted():
    examples = [
        Example(["a", "b", "c", "d", "e"], ((0, 4, "PER"), (0, 1, "ORG"), (0, 1, "LOC"))),
        Example("Steven Jobs", ((0, 5, "PER"),)),
    ]
    coverage = encoded(examples).coverage[0]
    assert (coverage.examples, coverage.gold) == (2, 4)
    assert (coverage.kinds, coverage.relabelled) == (
        {"candidate": 2, "wider_than_limit": 1, "off_word_bounds": 1},
        1,
    )
    assert "1 wider than limit; 1 off word bounds" in coverage.report()
    assert "50.00%" in coverage.report()


@pytest.mark.parametrize("workers", [0, 1])
def test_examples_that_no_window_holds_are_left_out_and_counted(workers):
    around = encoded(SENTENCES)
    found = encoded([*SENTENCES[:2], OVERLONG, OVERLONG, *SENTENCES[2:]], max_tokens=100, workers=workers)
    chains = [document.chain_token_ids.tolist() for document in found.documents]
    assert chains == [document.chain_token_ids.tolist() for document in around.documents]
    (coverage,), (without,) = found.coverage, around.coverage
    assert (coverage.examples, coverage.gold) == (without.examples + 2, without.gold + 4)
    assert (coverage.skipped, coverage.skipped_gold, coverage.kinds) == (2, 4, {"candidate": 7})
    report = coverage.report()
    assert "7 examples, 11 gold spans, 63.64% of them candidates; 2 examples with 4 gold spans left out" in report
    assert report.count("the example 'Ms x") == 1  # the first, with the reason
    assert "left out" not in without.report()


def test_a_passage_that_no_window_holds_counts_all_its_examples():
    beside = Example(["Ana"], ((0, 1, "PER"),), "d")
    coverage = encoded([OVERLONG, beside, *SENTENCES], Context("document", 10), max_tokens=100).coverage[0]
    assert (coverage.skipped, coverage.skipped_gold) == (2, 3)


def test_candidates_of_joined_sentences_stay_inside_their_sentence():
    examples = [Example([*"ab"], ((1, 2, "PER"),), "d"), Example([*"cd"], ((0, 2, "LOC"),), "d")]
    document = encoded(examples, Context("document", 10)).documents[0]
    alone = encoded(examples).documents
    assert len(document.gold) == sum(len(other.gold) for other in alone) == 6
    assert sorted(document.gold.tolist()) == [0, 0, 0, 0, 1, 3]
    after = encoded(examples, Context("preceding", 10)).documents
    assert [one.gold.tolist() for one in after] == [other.gold.tolist() for other in alone]
    chains = (alone[0].chain_token_ids, document.chain_token_ids)
    assert [one.chain_token_ids.tolist() for one in after] == [chain.tolist() for chain in chains]


def test_partial_examples_carry_loss_at_gold_spans_and_their_neighbours_only():
    examples = [Example("Yesterday Steve Jobs flew from Paris", ((10, 20, "PER"),), partial=True)]
    gold = encoded(examples).documents[0].gold
    assert (gold == 1).sum() == 1
    # spans that overlap words 1 and 2, at most 3 words wide, without the gold span itself
    assert (gold == 0).sum() == 7
    assert (gold == UNLABELLED).sum() == len(gold) - 8


def test_a_label_that_is_not_asked_for_is_an_error():
    with pytest.raises(ValueError, match=r"labels \['PER'\] that are not asked for"):
        encoded(types=["ORG", "LOC"])


@pytest.mark.parametrize("workers", [0, 1])
def test_where_no_window_holds_any_example_the_first_is_named_without_a_workers_traceback(workers):
    example = Example("See " + "x" * 300, ((4, 304, "PER"),))
    with pytest.raises(
        ValueError, match=r"^the source 'tiny': the example 'See x{56}': a document's frame .* a window has room for 0"
    ):
        encoded([example, OVERLONG], max_tokens=100, workers=workers)
