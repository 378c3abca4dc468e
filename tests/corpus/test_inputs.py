import gzip
import os
from io import BytesIO

import pytest
from fake_pipes import FakePipe, describe_fakes

from decodner_hf.corpus import annotate
from decodner_hf.corpus.inputs import Meter, find_sources, named_source, opened, split_suffixes, standard_input

try:
    import zstandard
except ImportError:
    zstandard = None

ZST = pytest.param(".zst", marks=pytest.mark.skipif(zstandard is None, reason="needs zstandard"))


def compressed(data, suffix):
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor(write_checksum=True).compress(data) if suffix == ".zst" else data


def names(sources):
    return [source.name for source in sources]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.txt", "a.jsonl", "deep/er/c.CSV.gz", ".hidden/d.txt", "deep/.e.txt", "README", "deep/f.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_read_with_all_that_it_holds_in_order(tree):
    said = []
    assert names(find_sources([tree], (), said.append)) == ["a.jsonl", "b.txt", "deep/er/c.CSV.gz"]
    assert len(said) == 1
    assert said[0].startswith("2 files of other types are not read: ")


def test_patterns_find_files_below_their_fixed_part(tree):
    assert names(find_sources([f"{tree}/**/*.gz", f"{tree}/*.txt"], (), print)) == ["deep/er/c.CSV.gz", "b.txt"]
    assert names(find_sources([f"{tree}/d??p/**"], (), print)) == ["deep/er/c.CSV.gz"]


def test_a_file_named_twice_is_read_once(tree):
    assert names(find_sources([tree / "b.txt", tree, f"{tree}/b.*"], (), print)) == [
        "b.txt", "a.jsonl", "deep/er/c.CSV.gz"
    ]  # fmt: skip


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").touch()
    assert names(find_sources([tmp_path / "a[1].txt"], (), print)) == ["a[1].txt"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("empty", ValueError, "holds no file that can be read"),
        ("*.xml", ValueError, "matches holds no file"),
        ("none.txt", FileNotFoundError, "there is no file"),
        ("a.pdf", ValueError, "cannot read 'a.pdf'"),
    ],
)
def test_inputs_that_cannot_be_read_are_named(tmp_path, given, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    with pytest.raises(error, match=message):
        find_sources([tmp_path / given], (), print)


@pytest.mark.parametrize("suffix", ["", ".gz", ZST])
def test_files_are_decompressed_and_measured(tmp_path, suffix):
    data = os.urandom(300_000)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(data[:100_000], suffix) + compressed(data[100_000:], suffix))  # two members
    meter = Meter()
    with opened(named_source(path), meter) as file:
        assert file.read(10) == data[:10]
        assert 0 < meter.bytes_read() <= path.stat().st_size
        assert file.read() == data[10:]
    assert meter.bytes_read() == path.stat().st_size


@pytest.mark.parametrize("damage", ["torn", "other", "changed"])
@pytest.mark.parametrize("suffix", [".gz", ZST])
def test_a_damaged_compressed_file_is_named_and_finished_work_is_kept(monkeypatch, tmp_path, suffix, damage):
    describe_fakes(monkeypatch)
    lines = "".join(f"City{number} {os.urandom(30).hex()}\n" for number in range(5000)).encode()
    data = compressed(lines, suffix)
    path, target = tmp_path / f"in.txt{suffix}", tmp_path / "out.jsonl"
    changed = data[:90_000] + bytes(9) + data[90_009:]
    path.write_bytes({"torn": data[:-7], "other": b"no such data", "changed": changed}[damage])
    with pytest.raises(ValueError, match=f"in.txt{suffix} is not a whole {suffix} file"):
        annotate(path, target, FakePipe())
    monkeypatch.setattr("decodner_hf.corpus.job.CHECKED_BYTES", 10_000)  # now it is found on the way
    with pytest.raises(ValueError, match=f"in.txt{suffix} is not a whole {suffix} file"):
        annotate(path, target, FakePipe())
    journal = target.with_name("out.jsonl.journal")
    assert not target.exists()
    assert damage == "other" or journal.read_bytes().count(b"\n") > 100


def test_suffixes_are_type_and_compression(tmp_path):
    assert split_suffixes(tmp_path / "a.b.JSONL.GZ") == (".jsonl", ".gz")
    assert split_suffixes(tmp_path / "a.zst") == ("", ".zst")
    assert split_suffixes(tmp_path / "a.parquet") == (".parquet", "")


def test_standard_input_is_read_from_its_stream():
    source = standard_input("jsonl", BytesIO(b"{}"))
    with opened(source) as file:
        assert (file.read(), source.suffix) == (b"{}", ".jsonl")
    with pytest.raises(ValueError, match="cannot read 'pdf'"):
        standard_input("pdf", BytesIO())
