"""GGUF files load as any decoder does, and are saved as any decoder is."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_pipelines import tiny_native

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from hidden_packages import hide_packages
from tiny_gguf import write_gguf
from tiny_training import SENTENCES, run_command
from transformers import pipeline

from decodner_cli import main as cli
from decodner_hf import DecodNERForSpanClassification, SpanPaths, UniversalDecoder, build_forest
from decodner_hf.core.gguf_files import load_tokenizer, split_gguf

PREFIX, SYMBOLS = [5, 9, 13, 7, 21], [33, 34, 36]
TEXT = "Apple met Steve Jobs in Cupertino."
ASKED = {"candidate_labels": ["Person", "Company"], "threshold": 0.0}


def scores(model):
    forest = build_forest([[]], [SpanPaths.from_lists([[8], [8, 9], [10, 11]])], first_position=len(PREFIX))
    return model.score_forest(forest, SYMBOLS, model.encode_prefix(PREFIX))


@pytest.fixture(scope="module")
def native():
    return tiny_native(intermediate_size=96)


@pytest.fixture
def file(native, tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", native)


LOADERS = {
    "folder and file": lambda file: DecodNERForSpanClassification.from_pretrained(file.parent, gguf_file=file.name),
    "path": DecodNERForSpanClassification.from_pretrained,
    "from_hub": lambda file: UniversalDecoder.from_hub(str(file.parent), gguf_file=file.name),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_the_model_is_the_one_in_the_file(native, file, load):
    expected = scores(DecodNERForSpanClassification.from_backbone(native))
    torch.testing.assert_close(scores(load(file)), expected, rtol=0, atol=5e-5)


def test_quantized_weights_are_unpacked(native, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", native, quantized=True)
    model = DecodNERForSpanClassification.from_pretrained(file, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = scores(DecodNERForSpanClassification.from_backbone(native))
    assert 0 < (scores(model) - expected).abs().max() < 0.1 * expected.abs().max()


def assert_saved_as_any(folder, expected):
    """The folder holds safetensors and nothing that speaks of GGUF, and has the expected scores."""
    assert "gguf" not in (folder / "config.json").read_text().lower()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())["text_config"]
    assert list(folder.glob("*.safetensors"))
    assert torch.equal(scores(DecodNERForSpanClassification.from_pretrained(folder)), expected)


def test_a_loaded_model_is_saved_as_plain_weights(file, tmp_path):
    model = DecodNERForSpanClassification.from_pretrained(file)
    model.save_pretrained(tmp_path / "saved")
    assert_saved_as_any(tmp_path / "saved", scores(model))


def test_the_pipeline_loads_a_file_and_saves_plain_weights(file, tmp_path):
    pipe = pipeline("decodner-ner", model=str(file.parent), model_kwargs={"gguf_file": file.name})
    found = pipe(TEXT, **ASKED)
    assert found
    pipe.save_pretrained(tmp_path / "saved")
    assert_saved_as_any(tmp_path / "saved", scores(pipe.model))
    assert pipeline("decodner-ner", model=str(tmp_path / "saved"))(TEXT, **ASKED) == found


def test_the_command_tags_with_a_file(file, capsys):
    assert (
        cli.main(["tag", TEXT, "--model", str(file), "--labels", "Person", "--threshold", "0", "--format", "json"])
        == 0
    )
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["entities"]
    assert printed.err == ""


@pytest.mark.parametrize("adapted", [[], ["--lora-rank", "2"]], ids=["whole", "adapters"])
def test_the_command_trains_from_a_file(file, tmp_path, adapted):
    if adapted:
        pytest.importorskip("peft")
    rows = [{"tokens": example.content, "entities": example.entities} for example in SENTENCES[:3]]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    assert run_command(tmp_path, "--model", file, "--max-steps", "2", *adapted) == 0
    out = tmp_path / "out"
    assert cli.main(["tag", TEXT, "--model", str(out), "--threshold", "0"]) == 0
    if adapted:
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
        assert not (out / "model.safetensors").exists()
    else:
        assert_saved_as_any(out, scores(DecodNERForSpanClassification.from_pretrained(out)))


def refusal(file):
    """What is said of a file that cannot be used, on one line."""
    with pytest.raises((ValueError, OSError)) as raised:
        DecodNERForSpanClassification.from_pretrained(file)
    message = str(raised.value)
    assert "\n" not in message
    assert str(file) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 0.999])
def test_a_file_cut_short_is_named(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "Get it again" in refusal(file)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04" * 50)
    assert "not a GGUF file" in refusal(tmp_path / "other.gguf")


@pytest.mark.parametrize("architecture", ["mamba", "nosuch"])
def test_an_architecture_that_does_not_qualify_is_named(native, tmp_path, architecture):
    file = write_gguf(tmp_path / "tiny.gguf", native, architecture=architecture)
    assert architecture in refusal(file)


def test_missing_weights_are_an_error(native, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", native, left_out="layers.1.self_attn.q_proj")
    assert "lacks weights of LlamaForCausalLM" in refusal(file)
    assert "model.layers.1.self_attn.q_proj.weight" in refusal(file)


def test_a_missing_file_is_named(tmp_path, capsys):
    assert "there is no file" in refusal(tmp_path / "no.gguf")
    assert cli.main(["tag", TEXT, "--model", str(tmp_path / "no.gguf"), "--labels", "A"]) == 1
    assert f"there is no file {tmp_path / 'no.gguf'}" in capsys.readouterr().err


def test_without_the_package_the_error_names_the_extra(file):
    code = f"""
from decodner_hf import DecodNERForSpanClassification
try:
    DecodNERForSpanClassification.from_pretrained({str(file)!r})
except ImportError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", hide_packages("gguf") + code], capture_output=True, text=True, check=True
    )
    assert 'pip install "decodner-hf[gguf]"' in run.stdout


def test_paths_on_the_hub_have_three_parts():
    assert split_gguf("owner/name/sub/file.gguf") == ("owner/name", "sub/file.gguf")
    assert split_gguf("owner/name") == ("owner/name", None)
    with pytest.raises(FileNotFoundError, match=r"there is no file name/file\.gguf"):
        split_gguf("name/file.gguf")


def test_the_tokenizer_of_a_file_is_found(file):
    assert load_tokenizer(str(file))("Apple").input_ids
