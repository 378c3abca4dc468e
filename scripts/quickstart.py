"""Trains a toy model on the CPU, from nothing and without a network, and finds entities with it.

Out: entities printed, and the folder `quickstart-model`, which the README's examples load. The toy knows the few names
and sentence patterns below and nothing else of the world: it shows how things are done, not how good a model can be.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline, set_seed
from transformers.utils import logging

import decodner_hf  # noqa: F401 - registers the pipeline
from decodner_hf.training import add_train_arguments, run_train

LABELS = ("Person", "Company", "Location")
# fmt: off
FIRST = ("Ada", "Alan", "Anna", "Carlos", "Chen", "Claire", "David", "Emma", "Grace", "Hugo", "Ines", "Jane", "Kofi",
         "Lars", "Maria", "Omar", "Priya", "Steve", "Tim", "Yuki")
LAST = ("Allen", "Bauer", "Cook", "Diaz", "Evans", "Fischer", "Garcia", "Hopper", "Ito", "Jobs", "Khan", "Larsen",
        "Moreau", "Novak", "Okafor", "Patel", "Rossi", "Smith")
COMPANIES = ("Acme", "Amazon", "Apple", "Boeing", "Contoso", "Ericsson", "Globex", "Google", "Hitachi", "Initech",
             "Intel", "Nokia", "Novartis", "Siemens")
SUFFIXES = ("", "", " Inc", " Group")
PLACES = ("Berlin", "Boston", "Chicago", "Cupertino", "Geneva", "Kyoto", "Lagos", "Lima", "London", "Lyon", "Madrid",
          "Oslo", "Paris", "Seattle", "Turin")
# fmt: on
PATTERNS = (
    "{C} was founded by {P} in {L}.",
    "{P} met {P} at {C}, a firm from {L}.",
    "In {L}, {P} works for {C}.",
    "{P} moved from {L} to {L}.",
    "{C} bought {C} last year.",
    "The mayor of {L} thanked {P}.",
    "Shares of {C} fell after {P} left.",
    "{P} lives in {L} and likes music.",
    "Nothing happened in {L} today.",
    "It rained all day.",
)
SHOWN = "Apple was founded by Steve Jobs in Cupertino."


def name(kind: str, draw: random.Random) -> str:
    """Draws a name of one kind: P, C or L."""
    if kind == "P":
        return f"{draw.choice(FIRST)} {draw.choice(LAST)}"
    if kind == "C":
        return draw.choice(COMPANIES) + draw.choice(SUFFIXES)
    return draw.choice(PLACES)


def example(draw: random.Random) -> dict[str, object]:
    """Makes a sentence with its entities, as the training data's format has them."""
    text, entities = "", []
    for part in draw.choice(PATTERNS).replace("{", "|{").replace("}", "}|").split("|"):
        kind = part.strip("{}")
        if part == f"{{{kind}}}":
            part = name(kind, draw)
            label = next(label for label in LABELS if label.startswith(kind))
            entities.append([len(text), len(text) + len(part), label])
        text += part
    return {"text": text, "entities": entities}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Trains a small byte-level BPE tokenizer with single digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def main() -> int:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("quickstart-model"))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    if options.output.exists():
        print(f"{options.output} exists: remove it, or name another folder with --output.", file=sys.stderr)
        return 1
    logging.set_verbosity_error()
    set_seed(0)
    torch.set_num_threads(1)  # the toy is too small to share among cores
    draw = random.Random(0)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        examples = [example(draw) for _ in range(options.examples)]
        lines = [json.dumps(item) for item in examples]
        (work / "train.jsonl").write_text("\n".join(lines[200:]), encoding="utf-8")
        (work / "dev.jsonl").write_text("\n".join(lines[:200]), encoding="utf-8")
        prompt = "Classify the named entity span. Entity types: 1. Person 2. Company 3. Location 0. None Text: Span:"
        tokenizer = make_tokenizer([*(str(item["text"]) for item in examples), *[prompt] * 50, SHOWN])
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        base.save_pretrained(work / "base")
        tokenizer.save_pretrained(work / "base")
        train = argparse.ArgumentParser()
        add_train_arguments(train)
        arguments = ["--model", work / "base", "--output", work / "trained", "--labels", *LABELS, "--cpu"]
        arguments += ["--train", work, "--dev", work, "--epochs", options.epochs, "--evaluate-epochs", 0]
        arguments += ["--learning-rate", 2e-3, "--row-tokens", 2048, "--workers", 0, "--licence", "apache-2.0"]
        run_train(train.parse_args([str(argument) for argument in arguments]))
        shutil.copytree(work / "trained", options.output, ignore=shutil.ignore_patterns("checkpoint-*"))
    ner = pipeline("decodner-ner", model=str(options.output), device="cpu")
    print(f"\n{SHOWN}")
    for entity in ner(SHOWN):
        print(entity)
    return 0


if __name__ == "__main__":
    sys.exit(main())
