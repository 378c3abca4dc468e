import json
import lzma
from collections import Counter
from itertools import pairwise

import pytest
import silver_mentions
from silver.dictionary import DictionaryBuilder, WordCounts
from silver.matching import ArticleMatcher, Sentence
from silver.passages import LONGEST, SHORTEST, choose_passages
from silver.patterns import Lists
from silver.sentences import dates_and_amounts, split_sentences
from silver.taxonomy import TAXONOMY, Taxonomy, definition_phrase, head_phrase, tokenize
from spaced_words import labelled_lines, spaced

from decodner_hf.data.document_context import Context, passages_of
from decodner_hf.data.examples import load_examples

ARTICLES = {
    "Mara Velling": "Mara Velling (born 3 May 1950) is a former Danish jazz guitarist who lives in Oslo.",
    "Mara Stone": "Mara Stone was an English painter.",
    "Mara Holt": "Mara Holt is a Canadian politician.",
    "The Tin Owls": "The Tin Owls are an indie rock band from Norway.",
    "Night Ferry (novel)": "Night Ferry is a crime novel by an author.",
    "Blix Tide": "Blix Tide is a shipping company in Poland.",
    "Tall Reed (ship)": "Tall Reed was a warship.",
    "Quill Harbour": "Quill Harbour is a port city on an island.",
    "Grey fever": "Grey fever is an infectious disease. A cow with grey fever is ill, as grey fever spreads.",
}
TALK = "he was here when the owl and the tin and the night and the ferry and the tide were blue in town. "


@pytest.fixture(scope="module")
def taxonomy():
    return Taxonomy.read(TAXONOMY)


@pytest.fixture(scope="module")
def matcher(taxonomy):
    counts = WordCounts()
    builder = DictionaryBuilder(taxonomy, counts)
    for title, text in ARTICLES.items():
        counts.add(TALK + text)
        builder.add_article(title, text)
    builder.add_pair("Blix Tide", "merchant shipping company")
    builder.add_pair("Quill Harbour", "football club")  # two kinds: no entry
    return ArticleMatcher(taxonomy, builder.build(), counts, Lists(taxonomy))


def found(matcher, text, title="no article"):
    matcher.start(title)
    sentence = matcher.sentence(text)
    return None if sentence is None else [(text[start:end], label) for start, end, label in sentence.mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She heard Mara Velling play in Oslo.", [("Mara Velling", "guitarist"), ("Oslo", "city")]),
        ("He saw the Tin Owls and The Tin Owls.", None),  # only the name with its article is known
        ("He saw The Tin Owls in 1999.", [("The Tin Owls", "rock band"), ("1999", "date")]),
        ('He wrote the novel "Night Ferry" in Rome.', [("Night Ferry", "novel"), ("Rome", "city")]),
        ('He read "Night Ferry" in Rome.', [("Night Ferry", "novel"), ("Rome", "city")]),
        ('He read "Day Ferry" in Rome.', None),
        ("He took the night ferry to Rome.", [("Rome", "city")]),
        ("He worked for Blix Tide of Rome.", [("Blix Tide", "shipping company"), ("Rome", "city")]),
        ("He went to Quill Harbour and to Rome.", None),
        ("A cow had grey fever and malaria.", [("grey fever", "disease"), ("malaria", "disease")]),
        ("It is sodium sulfate.", [("sodium sulfate", "chemical compound")]),
        ("The lamps of argon provide light.", [("argon", "chemical element")]),
        ("He built the London and Quill Railway.", None),  # perhaps one name
        ("Grey 7 was sold in Rome.", None),
        ("He read of the Rome Oslo plan.", None),
        ("He took the French ship to Rome.", [("French", "nationality"), ("Rome", "city")]),
        ("He studied at the University of Oslo.", [("University of Oslo", "university")]),
        ("The Battle of Quill Harbour was lost.", [("Battle of Quill Harbour", "battle")]),
        ("They won the 1994 Winter Olympics.", [("1994 Winter Olympics", "olympic games")]),
        ("He led the 9th Quill Brigade.", [("9th Quill Brigade", "brigade")]),
        ("The Danish national ice hockey team lost.", [("Danish national ice hockey team", "national team")]),
        ("He was in the band Snorvik.", [("Snorvik", "band")]),
        ("He said that Snorvik is in Rome.", None),
        ("President Mara Holt spoke French.", [("Mara Holt", "politician"), ("French", "language")]),
        ("The French film cost $1.5 million.", [("French", "nationality"), ("$1.5 million", "money")]),
        (
            "They sailed the Mississippi, as in Mississippi law.",
            [("Mississippi", "river"), ("Mississippi", "US state")],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sentence_is_given_with_all_its_names_or_not_at_all(matcher, text, expected):
    assert found(matcher, text) == expected


def test_an_article_s_person_is_known_by_the_last_name_and_only_there(matcher):
    text = "In 1970 Velling moved to Oslo."
    assert found(matcher, text) is None
    assert found(matcher, text, "Mara Velling") == [("1970", "date"), ("Velling", "guitarist"), ("Oslo", "city")]


def test_a_full_name_seen_before_licenses_its_last_name_and_initials_their_name(matcher):
    matcher.start("no article")
    assert matcher.sentence("The painter Mara Holt met the Quill River Society (QRS) here.") is not None
    text = "Holt left QRS in 1980."
    assert [text[s:e] for s, e, _ in matcher.sentence(text).mentions] == ["Holt", "QRS", "1980"]


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("Bo Li (born 1950) is a retired Swedish indie rock band from Malmö.", "rock band"),
        ("It is a 1999 American film directed by him.", "film"),
        ("It is a species of beetle in the family Aidae.", "insect"),
        ("She was one of the greatest novelists of her time.", "novelist"),
        ("Cardiology is a branch of medicine.", "field of study"),
        ("It is a fourth.", None),
        ("They sang.", None),
    ],
)
def test_a_definition_tells_the_type(taxonomy, sentence, label):
    phrase = definition_phrase(sentence, taxonomy)
    head = phrase and head_phrase(phrase[1], taxonomy)
    assert (head and head[0]) == label


def test_types_that_the_taxonomy_lacks_are_kept_where_they_are_frequent(taxonomy):
    builder = DictionaryBuilder(taxonomy, WordCounts(), rare_below=2)
    for mention, phrase in (("Ab Cd", "round zorp"), ("Ef Gh", "round zorp"), ("Ij Kl", "flat morp")):
        builder.add_pair(mention, phrase)
    names = builder.build()
    assert names.types == {"round zorp": 2}
    assert names.labels["Ab Cd"] == "round zorp"
    assert "Ij Kl" not in names.labels


@pytest.mark.parametrize(
    ("title", "text", "known"),
    [
        ("Snorvik", "Snorvik is a city.", True),
        ("Snorvik", "Oslo is a city.", False),
        ("Rule of Snorvik", "Rule of Snorvik takes place in what is thought of as a city.", False),
    ],
)
def test_only_a_definition_of_the_title_is_read(taxonomy, title, text, known):
    builder = DictionaryBuilder(taxonomy, WordCounts())
    builder.add_article(title, text)
    assert bool(builder.readings) is known


def test_the_taxonomy_is_closed_and_has_no_circles(taxonomy):
    for label, ancestors in taxonomy.types.items():
        assert label not in ancestors
        for ancestor in ancestors:
            assert label not in taxonomy.types[ancestor]
    assert taxonomy.common(["guitarist", "musician"]) == "guitarist"
    assert taxonomy.common(["guitarist", "poet"]) == "person"
    assert taxonomy.common(["guitarist", "river"]) is None


def test_a_label_without_a_type_is_refused(tmp_path):
    (tmp_path / "types.json").write_text(json.dumps({"types": {"a": ["b"]}, "aliases": {}, "names": {"X": "c"}}))
    with pytest.raises(ValueError, match=r"\['b', 'c'\]"):
        Taxonomy.read(tmp_path / "types.json")


def test_sentences_end_where_they_end():
    text = 'Mr. J. Lee met Dr. Wu on the U.S. coast. "They all went home that day." Then it was all over now.\nSee.'
    assert list(split_sentences(text)) == [
        "Mr. J. Lee met Dr. Wu on the U.S. coast.",
        '"They all went home that day."',
        "Then it was all over now.",
    ]
    assert list(split_sentences("It lies approximately north of the town ( ) there.")) == []


@pytest.mark.parametrize(
    "text", ["12 May 1990", "May 12, 1990", "June 1990", "the 1990s", "19th century", "44 BC", "in 1260"]
)
def test_dates(text):
    assert [text[start:end] for start, end, _ in dates_and_amounts(text)] == [
        text.removeprefix("the ").removeprefix("in ")
    ]


@pytest.mark.parametrize("text", ["1500 soldiers", "1234 men", "19999", "may 1", "1,990"])
def test_other_numbers_are_no_dates(text):
    assert list(dates_and_amounts(text)) == []


@pytest.mark.parametrize("text", ["O'Brien's", "Jean-Luc", "London-based", "A.B. Lee", "Crédit Île"])
def test_tokens_are_the_text(text):
    assert "".join(tokenize(text)) == text.replace(" ", "")
    assert tokenize("O'Brien's") == ["O'Brien", "'s"]


def test_selection_is_seeded_bounded_and_caps_names():
    pool = [(str(n), Sentence(f"Snorvik {n}", ((0, 7, "band"),))) for n in range(500)]
    pool += [(str(n), Sentence(f"Rome {n}", ((0, 4, "city"),))) for n in range(500)]
    chosen = silver_mentions.select(pool, 400, seed=1)
    assert chosen == silver_mentions.select(pool, 400, seed=1) != silver_mentions.select(pool, 400, seed=2)
    kinds = Counter(number < 500 for number in chosen)
    assert kinds[True] == silver_mentions.SURFACE_AT_MOST
    assert kinds[False] == int(400 * silver_mentions.PLAIN_SHARE)


def test_quotation_marks_for_italics_can_be_left_out(taxonomy):
    sentence = Sentence('In "Night" he says "no" to Rome.', ((4, 9, "novel"), (27, 31, "city")))
    plain = silver_mentions.unquoted(sentence, taxonomy)
    assert plain.text == 'In Night he says "no" to Rome.'
    assert [plain.text[start:end] for start, end, _ in plain.mentions] == ["Night", "Rome"]


def test_passages_are_runs_of_one_article_of_many_lengths():
    sentence = Sentence("word " * 19 + "Snorvik", ((95, 102, "band"),))
    bare = Sentence("word " * 19 + "word", ())
    pool = [(str(article), sentence) for article in range(40) for _ in range(60)]
    pool += [("short", sentence), ("short", sentence), *[("bare", bare)] * 60]
    runs = choose_passages(pool, 100, seed=1)
    assert runs == choose_passages(pool, 100, seed=1) != choose_passages(pool, 100, seed=2)
    assert len(runs) == 100
    assert all(len({pool[number][0] for number in run}) == 1 for run in runs)
    assert all(run.stop <= after.start for run, after in pairwise(runs))
    words = [20 * len(run) for run in runs]
    assert min(words) >= SHORTEST
    assert max(words) < LONGEST + 20
    assert len(set(words)) > 8
    assert {pool[run.start][0] for run in runs}.isdisjoint({"short", "bare"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. Smith's team (U.S.) won 6-3.", ["Mr.", "Smith", "'s", "team", "(", "U.S.", ")", "won", "6-3", "."]),
        ("They don't pay $3,500 or 5%.", ["They", "do", "n't", "pay", "$", "3,500", "or", "5", "%", "."]),
        ("O'Brien & Co. of well-known AT&T", ["O'Brien", "&", "Co.", "of", "well-known", "AT&T"]),
        ("J. R. Lee left on 1996-08-22.", ["J.", "R.", "Lee", "left", "on", "1996-08-22", "."]),
    ],
)
def test_marks_stand_apart(text, words):
    assert spaced(text, [])[0] == words


def test_a_text_whose_mentions_cut_words_stays_a_text():
    whole, cut = ("He saw Oslo.", ((7, 11, "city"),)), ("Oslo-born Lee", ((0, 4, "city"),))
    assert spaced(*cut) is None
    assert labelled_lines([whole], apart=True) == [
        {"tokens": ["He", "saw", "Oslo", "."], "entities": [(2, 3, "city")]}
    ]
    assert [set(line) for line in labelled_lines([whole, cut], apart=True)] == [{"text", "entities"}] * 2
    assert [set(line) for line in labelled_lines([whole], apart=False)] == [{"text", "entities"}]


def test_the_command_writes_sentences_passages_and_names(tmp_path, capsys):
    with lzma.open(tmp_path / "a.jsonl.xz", "wt") as out:
        for number, (title, text) in enumerate(ARTICLES.items()):
            body = f"{text}\n{TALK}\nShe heard Mara Velling play in Oslo.\nShe heard Mara Velling play in Oslo."
            out.write(json.dumps({"id": number, "title": title, "text": body}) + "\n")
    example = {"text": "Blix Tide is a company.", "entities": [[0, 9, "company"]]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(example) + "\n")
    command = ["--text", str(tmp_path / "a.jsonl.xz"), "--definitions", str(tmp_path / "pairs.jsonl")]
    command += ["--output", str(tmp_path / "silver.jsonl"), "--names", str(tmp_path / "names.json")]
    assert silver_mentions.main(command) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    examples = load_examples(tmp_path / "silver.jsonl")
    assert summary["sentences"] == len(examples) == len({example.text for example in examples})
    heard = next(example for example in examples if "heard" in example.text)
    found = [(heard.text[start:end], label) for start, end, label in heard.character_entities]
    assert found == [("Mara Velling", "guitarist"), ("Oslo", "city")]
    names = json.loads((tmp_path / "names.json").read_text())
    assert "Mara Velling" in names["types"]["guitarist"]
    assert "Night Ferry" in names["types"]["novel"]
    once = (tmp_path / "silver.jsonl").read_bytes()
    silver_mentions.main(command)
    assert (tmp_path / "silver.jsonl").read_bytes() == once


def test_a_sentence_stands_among_the_passages_or_alone(tmp_path):
    texts = [
        f"In {year} she heard Mara Velling play again in Oslo and then in the town of Rome."
        for year in range(1900, 1912)
    ]
    article = {"id": 7, "title": "Mara Velling", "text": f"{ARTICLES['Mara Velling']}\n{TALK}\n" + "\n".join(texts)}
    other = {
        "id": 8,
        "title": "Mara Holt",
        "text": f"{ARTICLES['Mara Holt']}\n{TALK}\nShe was in Rome in 1950 for it.",
    }
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(a | {"id": a["id"]}) + "\n" for a in (article, other)))
    command = ["--text", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "silver.jsonl")]
    assert silver_mentions.main([*command, "--passages", str(tmp_path / "passages.jsonl")]) == 0
    alone, passages = load_examples(tmp_path / "silver.jsonl"), load_examples(tmp_path / "passages.jsonl")
    assert {example.document.split(".")[0] for example in passages} == {"7"}
    assert len({type(example.content) for example in passages}) == 1
    assert not {example.text for example in alone} & {example.text for example in passages}
    joined = passages_of(passages, Context("document", 600))
    assert max(len(passage.members) for passage in joined) > 2


def test_a_missing_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        silver_mentions.main(["--text", str(tmp_path / "none.jsonl"), "--output", "x"])
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-sentences", "--max-passages"])
def test_a_number_below_one_is_refused(capsys, option):
    with pytest.raises(SystemExit):
        silver_mentions.main(["--text", str(TAXONOMY), "--output", "x", option, "0"])
    assert f"argument {option}: 0: give at least 1" in capsys.readouterr().err
