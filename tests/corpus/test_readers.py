from decodner_hf.corpus.inputs import named_source
from decodner_hf.corpus.readers import Layout, read_records


def test_csv_quotes_and_long_fields_are_read(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('\ufefftext,n\n"a ""b""\nc",1\n\n' + "x" * 200_000 + ",2\n", encoding="utf-8")
    assert [record.text for record in read_records([named_source(path)], Layout())] == ['a "b"\nc', "x" * 200_000]
    assert [record.place for record in read_records([named_source(path)], Layout())] == ["line 2", "line 5"]
