import pytest
import torch
from tiny_pipelines import LABELS, tiny_native, tiny_pipeline

from decodner_hf.corpus.fingerprint import fingerprint, settings_of


def test_equal_models_have_equal_fingerprints_wherever_they_lie(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    again = type(pipe.model).from_pretrained(tmp_path)
    assert fingerprint(tiny_pipeline(model=again)) == fingerprint(pipe)


@pytest.mark.parametrize("change", ["weights", "dtype", "configuration", "shape", "tokenizer"])
def test_another_model_has_another_fingerprint(change):
    before, pipe = fingerprint(tiny_pipeline()), tiny_pipeline()
    if change == "weights":
        with torch.no_grad():
            for weight in pipe.model.parameters():
                weight.add_(torch.full_like(weight, 1e-4))
    elif change == "dtype":
        pipe.model.to(torch.float64)
    elif change == "configuration":
        pipe.model.config.threshold = 0.123
    elif change == "shape":
        pipe = tiny_pipeline(model=tiny_native(hidden_size=32))
    else:
        pipe.tokenizer.add_tokens(["Rome"])
    assert fingerprint(pipe) != before


def test_settings_are_those_of_the_pipeline():
    settings = settings_of(tiny_pipeline(candidate_labels=LABELS, threshold=0.25))
    assert (settings["candidate_labels"], settings["threshold"], settings["overlap"]) == (LABELS, 0.25, "flat")
