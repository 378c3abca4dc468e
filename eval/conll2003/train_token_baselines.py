"""Fine-tunes the same decoder for token classification, to compare span scoring with.

Two forms: `causal`, a tag at each word's last token, which has not seen what follows; and `second-copy`, the sentence
twice, tagged on the second copy, whose tokens have seen all of the first. IOB2 tags, one linear layer on the decoder
(`AutoModelForTokenClassification`). Each learning rate is trained, and the best on dev is reported on test.

python eval/conll2003/train_token_baselines.py --model backbone --data conll2003 --epochs 8 --out baselines.json
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from decodner_hf.data.examples import Example, labels_of, load_examples
from decodner_hf.data.tag_schemes import tags_to_entities
from decodner_hf.evaluation.span_metrics import precision_recall_f1

FORMS = ("causal", "second-copy")
IGNORED = -100


@dataclass(frozen=True)
class Tagged:
    """A sentence: its token ids, the token that carries each word's tag, each word's tag, and its gold spans."""

    token_ids: list[int]
    tag_tokens: list[int]
    tags: list[int]
    spans: set[tuple[int, int, str]]


def encode(examples: Sequence[Example], tokenizer: Any, labels: Sequence[str], second_copy: bool) -> list[Tagged]:
    """Tokenizes sentences of words; words that no token ends in carry the tag of the token they share."""
    encoded = []
    for example in examples:
        if isinstance(example.content, str):
            raise ValueError("token classification needs examples of words, not of text.")
        text = example.text
        shift = len(text) + 1 if second_copy else 0
        tokens = tokenizer(f"{text}\n{text}" if second_copy else text, return_offsets_mapping=True)
        ends = np.maximum.accumulate(np.array([end for _, end in tokens["offset_mapping"]]))
        word_ends = np.cumsum([len(word) + 1 for word in example.content]) - 1 + shift
        tags = [0] * len(example.content)
        for start, end, label in example.entities:
            number = labels.index(label)
            tags[start:end] = [1 + 2 * number] + [2 + 2 * number] * (end - start - 1)
        places = np.searchsorted(ends, word_ends).clip(max=len(ends) - 1)
        encoded.append(Tagged(tokens["input_ids"], places.tolist(), tags, set(example.entities)))
    return encoded


def batches(data: Sequence[Tagged], size: int, generator: np.random.Generator | None) -> Iterator[list[int]]:
    """Batches of sentences of like length, in random order; in order of length without a generator."""
    noise = generator.random(len(data)) * 8 if generator is not None else np.zeros(len(data))
    order = np.argsort([len(item.token_ids) + extra for item, extra in zip(data, noise, strict=True)], kind="stable")
    pieces = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    if generator is not None:
        pieces = [pieces[index] for index in generator.permutation(len(pieces))]
    yield from pieces


def collate(items: Sequence[Tagged], device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Right-padded inputs [B, T] and targets [B, T]."""
    longest = -(-max(len(item.token_ids) for item in items) // 8) * 8
    ids, mask, targets = (np.zeros((len(items), longest), np.int64) for _ in range(3))
    targets[:] = IGNORED
    for row, item in enumerate(items):
        ids[row, : len(item.token_ids)] = item.token_ids
        mask[row, : len(item.token_ids)] = 1
        targets[row, item.tag_tokens] = item.tags
    on_device = [torch.from_numpy(array).to(device, non_blocking=True) for array in (ids, mask, targets)]
    return {"input_ids": on_device[0], "attention_mask": on_device[1]}, on_device[2]


def train(model: Any, data: list[Tagged], options: argparse.Namespace, rate: float, device: torch.device) -> None:
    """AdamW with a linear warm-up and a cosine down."""
    generator = np.random.default_rng(options.seed)
    steps = options.epochs * math.ceil(len(data) / options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=device.type == "cuda")
    warmup = max(1, round(0.05 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / steps))),
    )
    model.train()
    for _ in range(options.epochs):
        for chosen in batches(data, options.batch, generator):
            inputs, targets = collate([data[index] for index in chosen], device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@torch.no_grad()
def evaluate(
    model: Any, data: list[Tagged], labels: Sequence[str], batch: int, device: torch.device
) -> dict[str, float]:
    """Exact-span precision, recall and F1."""
    model.eval()
    names = ["O", *(f"{prefix}-{label}" for label in labels for prefix in "BI")]
    right = found = 0
    for chosen in batches(data, 4 * batch, None):
        items = [data[index] for index in chosen]
        best = model(**collate(items, device)[0]).logits.argmax(-1).cpu().numpy()
        for item, row in zip(items, best, strict=True):
            own = set(tags_to_entities([names[tag] for tag in row[item.tag_tokens].tolist()]))
            right, found = right + len(own & item.spans), found + len(own)
    figures = precision_recall_f1(right, found, sum(len(item.spans) for item in data))
    return dict(zip(("precision", "recall", "f1"), figures.tolist(), strict=True))


def main() -> int:
    """Trains each form at each learning rate and prints a table, the JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the decoder that span scoring starts from too")
    parser.add_argument("--data", required=True, help="a folder with the splits")
    parser.add_argument("--splits", nargs=3, default=["train", "dev", "test"], metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[3e-5, 1e-4, 3e-4, 1e-3])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="sentences a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="examples of each split")
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    splits = [load_examples(options.data, split, limit=options.limit) for split in options.splits]
    labels = labels_of(splits[0])
    results: dict[str, Any] = {}
    for form in options.forms:
        data = [encode(examples, tokenizer, labels, form == "second-copy") for examples in splits]
        runs = []
        for rate in options.learning_rates:
            torch.manual_seed(options.seed)
            started = time.monotonic()
            model = AutoModelForTokenClassification.from_pretrained(
                options.model, num_labels=1 + 2 * len(labels), dtype=torch.float32
            ).to(device)
            train(model, data[0], options, rate, device)
            dev, test = (evaluate(model, part, labels, options.batch, device) for part in data[1:])
            runs.append({"learning_rate": rate, "dev": dev, "test": test})
            print(
                f"{form} lr {rate:g}: dev F1 {100 * dev['f1']:.2f}, test F1 {100 * test['f1']:.2f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        results[form] = {"best": max(runs, key=lambda run: run["dev"]["f1"]), "runs": runs}
    text = json.dumps({"options": vars(options), "results": results})
    if options.out:
        with open(options.out, "w", encoding="utf-8") as out:
            out.write(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
