"""Compares the scores of random documents in random packings with those of each document alone and unlimited.

In: a number of documents and a seed. Out: progress, the first difference if there is one and, last, one JSON line.
Every round draws documents (hyphens, apostrophes, emoji, several scripts, odd spaces, blank ones), labels, a width, a
token budget and a number of positions, and runs a tiny random Llama in float64 with the packaged model's tokenizer.
Every second round grows spans; those that should exist are then simulated on the scores of all, and spans with a
prefix within 1e-5 of the threshold, which rounding may decide, are not compared.
Run as `PYTHONPATH=.:tests/support:scripts python scripts/fuzz_scores.py`.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_pipelines import tiny_float64, tiny_pipeline
from transformers import AutoTokenizer
from varied_documents import random_text

from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, DecodNERPipeline
from decodner_hf.core.pipeline_io import Document
from decodner_hf.default_model import default_model
from decodner_hf.evaluation.simulated_growth import GrowthAnswers, asking, split_answers

UNLIMITED = 10**9
TOLERANCE = 1e-9
DOUBT = 1e-5  # of a prefix's probability to the growth threshold
POSITIONS = (4096, 4096, 4096, 4096, 4096, 256)  # of the models; with the fewest, many documents take several windows
MOST_DOCUMENTS = 48  # per list
MOST_WORDS = (4, 8, 24, 80)
MOST_LABELS = (1, 3, 10, 30)
WIDEST = 32
BUDGETS = (48, 8192)
EVERYTHING = {"threshold": 0.0, "overlap": "all", "return_all_scores": True}


@dataclass(frozen=True)
class Round:
    """What one round compares."""

    texts: list[str]
    labels: list[str]
    width: int
    budget: int
    positions: int
    growth_threshold: float | None  # None to score all spans

    @classmethod
    def draw(cls, random: Random) -> "Round":
        """Draws a round; lists of long documents are shorter."""
        words = random.choice(MOST_WORDS)
        count = random.randint(1, max(1, MOST_DOCUMENTS * MOST_WORDS[0] // words))
        least, most = BUDGETS
        return cls(
            texts=[random_text(random, words) for _ in range(count)],
            labels=[f"type{number}" for number in range(random.randint(1, random.choice(MOST_LABELS)))],
            width=random.randint(1, WIDEST),
            budget=round(least * (most / least) ** random.random()),
            positions=random.choice(POSITIONS),
            growth_threshold=random.choice((None, random.random())),
        )

    def compare(self, pipe: DecodNERPipeline) -> tuple[int, float]:
        """Returns the number of spans and the largest difference of scores; infinite if the spans differ."""
        asked: dict[str, Any] = {"candidate_labels": self.labels, "max_span_words": self.width, "growth": False}
        asked |= EVERYTHING
        pipe.scorer.token_budget = UNLIMITED
        expected = [_scores(pipe(text, **asked)) for text in self.texts]
        doubtful: list[set[tuple[int, int]]] = [set() for _ in self.texts]
        if self.growth_threshold is not None:
            for number, text in enumerate(self.texts):
                exist, doubtful[number] = self._grown(pipe, text)
                expected[number] = {span: scores for span, scores in expected[number].items() if span in exist}
            asked |= {"growth": True, "growth_threshold": self.growth_threshold}
        pipe.scorer.token_budget = self.budget
        spans, largest = 0, 0.0
        for one, rows, left_out in zip(expected, pipe(self.texts, **asked), doubtful, strict=True):
            other = _scores(rows)
            for known in (one, other):
                for span in left_out & known.keys():
                    del known[span]
            spans += len(one)
            same = one.keys() == other.keys()
            differences = [float(np.abs(one[span] - other[span]).max()) for span in one] if same else [float("inf")]
            largest = max([largest, *differences])
        return spans, largest

    def _grown(self, pipe: DecodNERPipeline, text: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Returns the spans that should exist by the rule and an exhaustive pass, and doubtful ones."""
        assert self.growth_threshold is not None
        settings = pipe.settings_for({"max_span_words": self.width, "growth": False})
        labels = pipe.labels_for(self.labels)
        prepared = asking(pipe.encoder.encode([Document(text, labels)], settings)[0])
        scored = pipe.scorer.score([prepared])[0]
        _, goes_on = split_answers(scored.label_logits, prepared.prompts)
        windows = [window.candidates for window in prepared.windows]
        start, end, start_word, end_word = (
            np.concatenate([getattr(candidates, name) for candidates in windows])
            for name in ("start", "end", "start_word", "end_word")
        )
        answers = GrowthAnswers(start_word, end_word - start_word, goes_on)
        low, high = (answers.exist(self.growth_threshold + shift) for shift in (-DOUBT, DOUBT))
        spans = list(zip(start.tolist(), end.tolist(), strict=True))
        exist = {span for span, held in zip(spans, low.tolist(), strict=True) if held}
        return exist, {span for span, sure in zip(spans, (low == high).tolist(), strict=True) if not sure}


@dataclass
class Tally:
    """Counts what the rounds have shown so far."""

    documents: int = 0
    spans: int = 0
    rounds: int = 0
    largest_difference: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


def main() -> int:
    """Runs rounds until enough documents were compared; 1 if scores differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    pipes = {
        positions: tiny_pipeline(
            tokenizer,
            DecodNERForSpanClassification.from_backbone(
                tiny_float64(vocab_size=len(tokenizer), max_position_embeddings=positions),
                DecodNERConfig(continuation=True),
            ),
        )
        for positions in sorted(set(POSITIONS))
    }
    random, tally, started = Random(arguments.seed), Tally(), time.perf_counter()
    while tally.documents < arguments.documents:
        drawn = Round.draw(random)
        spans, difference = drawn.compare(pipes[drawn.positions])
        tally.documents += len(drawn.texts)
        tally.spans += spans
        tally.rounds += 1
        tally.largest_difference = max(tally.largest_difference, difference)
        if difference > TOLERANCE:
            print(f"round {tally.rounds} differs by {difference}: {drawn}", flush=True)
            tally.failures.append({"round": tally.rounds, "difference": difference})
        if tally.rounds % 100 == 0:
            print(
                f"{tally.documents} documents, {tally.spans} spans, {time.perf_counter() - started:.0f} s", flush=True
            )
    figures = vars(tally) | {"seed": arguments.seed, "tolerance": TOLERANCE}
    print(json.dumps(figures | {"seconds": round(time.perf_counter() - started, 1)}))
    return 1 if tally.failures else 0


def _scores(rows: list[dict[str, Any]]) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Returns the scores [L] of each entity, by its start and end."""
    return {(row["start"], row["end"]): np.array(list(row["scores"].values())) for row in rows}


if __name__ == "__main__":
    raise SystemExit(main())
