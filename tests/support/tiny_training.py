"""Labelled sentences, and rows, models and trainers that are small enough for tests of training."""

import argparse

import torch
from architectures import tiny_config, tiny_model
from tiny_pipelines import tiny_native
from tokenizers_for_tests import byte_level_single_digits
from transformers import TrainingArguments

from decodner_cli import train as command
from decodner_hf import DecodNERConfig, DecodNERForSpanClassification, PromptTemplate
from decodner_hf.data.examples import Example
from decodner_hf.training import TrainingSource
from decodner_hf.training.documents import encode_sources
from decodner_hf.training.model import recompute_layers
from decodner_hf.training.prompts import OpenPrompter, OpenTypes, fixed_prompt
from decodner_hf.training.rows import PackedRows
from decodner_hf.training.trainer import SpanTrainer

LABELS = ("PER", "ORG", "LOC")
SENTENCES = [
    Example(["Steve", "Jobs", "founded", "Apple", "Inc."], ((0, 2, "PER"), (3, 5, "ORG"))),
    Example(["Apple", "in", "Cupertino"], ((0, 1, "ORG"), (2, 3, "LOC"))),
    Example(["the", "company", "in", "California"], ((3, 4, "LOC"),)),
    Example("Mr. O'Neil paid Yahoo!", ((4, 10, "PER"), (16, 22, "ORG"))),
    Example(["nothing", "here"], ()),
]


def encoded(examples=None, context=None, repeat=1.0, **kwargs):
    source = TrainingSource("tiny", examples or SENTENCES * 2, LABELS, repeat, context=context)
    settings = {"max_span_words": 3} | kwargs
    return encode_sources([source], byte_level_single_digits(), PromptTemplate(), **settings)


def fixed_rows(row_tokens=256, epochs=1, examples=None, repeat=1.0):
    prompt = fixed_prompt(dict.fromkeys(LABELS), byte_level_single_digits(), PromptTemplate())
    return PackedRows(encoded(examples, repeat=repeat), prompt, row_tokens=row_tokens, epochs=epochs, seed=3)


def open_rows(seed=3, epochs=1, **settings):
    tokenizer, sources = byte_level_single_digits(), encoded()
    prompter = OpenPrompter(OpenTypes(**settings), sources, tokenizer, PromptTemplate())
    return PackedRows(sources, prompter, row_tokens=256, epochs=epochs, seed=seed)


def tiny_classifier(model_type="llama"):
    if model_type == "llama":
        native = tiny_native(hidden_size=32)
    else:
        sizes = {"vocab_size": len(byte_level_single_digits()), "max_position_embeddings": 512}
        native = tiny_model(tiny_config(model_type, **sizes))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 if parameter.dim() > 1 else torch.ones_like(parameter))
    config = DecodNERConfig(entity_labels=list(LABELS), max_span_words=3, threshold=0.0)
    return DecodNERForSpanClassification.from_backbone(native, config)


def inputs_of(row):
    return {name: torch.as_tensor(value) for name, value in row.items() if name != "labels"}


def trainer(model, rows, folder, **arguments):
    given = {"num_train_epochs": 1, "learning_rate": 3e-3, "report_to": [], "logging_steps": 1, "save_strategy": "no"}
    given |= {"remove_unused_columns": False, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True}
    names = ("none_weight", "dev", "loss_divisor", "continuation_weight", "optimizers")
    own = {name: arguments.pop(name) for name in names if name in arguments}
    if arguments.pop("recomputed", False):
        recompute_layers(model)
    args = TrainingArguments(output_dir=str(folder), **(given | arguments))
    return SpanTrainer(model, args, rows, byte_level_single_digits(), **own)


OVERLONG = Example(["Ms", "x" * 300], ((0, 1, "PER"), (1, 2, "ORG")), "d")
ROW_TOKENS = 512  # of `run_command`


def parsed(arguments):
    """What `decodner train` parses of these arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    found = parser.parse_args(list(map(str, arguments)))
    command.check(found, parser.error)
    return found


def run_command(files, *arguments):
    """Runs `decodner train` on the model and data of the fixture `files`; returns its exit code."""
    common = ["--model", files / "base", "--output", files / "out", "--train", files / "data.jsonl"]
    common += ["--cpu", "--workers", "0", "--row-tokens", ROW_TOKENS, "--epochs", "2", "--max-span-words", "3"]
    return command.run(parsed([*common, *arguments]))
