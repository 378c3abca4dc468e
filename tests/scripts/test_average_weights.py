import json

import average_weights
import pytest
import torch
from tiny_pipelines import LABELS, TEXT, tiny_native, tiny_pipeline
from transformers import AutoTokenizer, pipeline

from decodner_hf import DecodNERForSpanClassification


@pytest.fixture
def seeds(tmp_path):
    """Three fine-tunings of one start, as it were: the same model moved by noise, calibrated to 1, 2 and 3."""

    def make(**changed):
        folders = []
        for seed in range(3):
            native = tiny_native(**changed)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in native.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
            pipe = tiny_pipeline(model=native, candidate_labels=LABELS)
            pipe.model.config.temperature = 1.0 + seed
            folders.append(str(tmp_path / f"seed-{seed}"))
            pipe.save_pretrained(folders[-1])
        return folders

    return make


def weights_of(folder):
    return DecodNERForSpanClassification.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("tied", [True, False])
def test_each_weight_is_the_mean_and_the_result_is_a_model_like_the_others(seeds, tmp_path, capsys, tied):
    folders, output = seeds(tie_word_embeddings=tied), tmp_path / "averaged"
    assert average_weights.main(["--models", *folders, "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "models": 3}
    inputs, averaged = [weights_of(folder) for folder in folders], weights_of(output)
    assert averaged.keys() == inputs[0].keys()
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, sum(weights[name] for weights in inputs) / 3, rtol=0, atol=1e-6)
    assert any(not torch.equal(averaged[name], inputs[0][name]) for name in averaged)
    pipe = pipeline("decodner-ner", model=str(output), candidate_labels=list(LABELS), threshold=0.0)
    assert pipe(TEXT)


def test_what_was_fitted_to_one_model_is_not_handed_on(seeds, tmp_path):
    folders = seeds()
    assert average_weights.main(["--models", *folders[::-1], "--output", str(tmp_path / "averaged")]) == 0
    assert DecodNERForSpanClassification.from_pretrained(folders[2]).config.temperature == 3.0
    assert DecodNERForSpanClassification.from_pretrained(tmp_path / "averaged").config.temperature == 1.0


def test_models_of_other_questions_or_shapes_are_refused(seeds, tmp_path, capsys):
    first, second, third = seeds()
    config = json.loads((tmp_path / "seed-1" / "config.json").read_text())
    output = ["--output", str(tmp_path / "averaged")]
    for part, said in (({"text_config": config["text_config"] | {"rms_norm_eps": 0.5}}, "rms_norm_eps 0.5, not 1e-06"),
                       ({"prompt": config["prompt"] | {"none_label": "nothing"}}, "prompt {")):  # fmt: skip
        (tmp_path / "seed-1" / "config.json").write_text(json.dumps(config | part))
        assert average_weights.main(["--models", first, second, *output]) == 1
        assert f"{second} differs from {first} ({said}" in capsys.readouterr().err
    assert average_weights.main(["--models", first, "/nowhere/at/all", *output]) == 1
    assert "there is no folder /nowhere/at/all" in capsys.readouterr().err
    (tmp_path / "seed-2" / "model.safetensors").write_bytes(b"cut short")
    capsys.readouterr()
    assert average_weights.main(["--models", first, third, *output]) == 1
    assert f"average_weights: error: the weights in {third} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "averaged").exists()


def test_models_of_other_tokenizers_are_refused(seeds, tmp_path, capsys):
    first, second, third = seeds()
    output = ["--output", str(tmp_path / "averaged")]
    tokenizer = AutoTokenizer.from_pretrained(second)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(second)
    assert average_weights.main(["--models", first, second, *output]) == 1
    assert f"{second} has another tokenizer than {first} (in added_tokens)" in capsys.readouterr().err
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "seed-1" / name).unlink()
    assert average_weights.main(["--models", first, second, *output]) == 1
    assert f"{second} has no tokenizer that can be used" in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(third)
    tokenizer.backend_tokenizer.enable_truncation(7)  # never used, and no reason to refuse
    tokenizer.chat_template = "unused"
    tokenizer.save_pretrained(third)
    assert average_weights.main(["--models", first, third, *output]) == 0


def test_chat_templates_must_be_alike_where_prompts_are_in_them(seeds, tmp_path, capsys):
    folders = seeds()[:2]
    for folder, closing in zip(folders, ("", "!"), strict=True):
        config = json.loads((path := tmp_path / folder / "config.json").read_text())
        path.write_text(json.dumps(config | {"prompt": config["prompt"] | {"chat_template": True}}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{{ messages[0].content }}" + closing
        tokenizer.save_pretrained(folder)
    assert average_weights.main(["--models", *folders, "--output", str(tmp_path / "averaged")]) == 1
    assert "(in chat_template)" in capsys.readouterr().err


def test_a_single_model_and_a_folder_that_is_there_are_refused(tmp_path, capsys):
    for arguments, said in (
        (["--models", "one", "--output", str(tmp_path / "new")], "at least two"),
        (["--models", "one", "two", "--output", str(tmp_path)], "name another --output"),
    ):
        with pytest.raises(SystemExit):
            average_weights.main(arguments)
        assert said in capsys.readouterr().err
