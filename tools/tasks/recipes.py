"""The tasks that can be built."""

from collections.abc import Mapping
from typing import Final

from tools.tasks.build import Recipe
from tools.tasks.sources import debian, emoji, facts, number_words, reading_matter, wordnet

_PACKAGE: Final = "source package"
_WORD: Final = "word"
_WORDING: Final = "wording; every fact is in all splits"
_DEFINITION: Final = ("definition",)
_DESCRIPTION: Final = ("description",)

RECIPES: Final[Mapping[str, Recipe]] = {
    "capitals": Recipe(make=facts.capitals, unit=_WORDING),
    "definition_word": Recipe(make=wordnet.definitions, unit=_WORDING),
    "element_symbol": Recipe(make=facts.elements, unit=_WORDING),
    "emoji_group": Recipe(make=emoji.groups, unit="name, but for who it shows"),
    "emoji_name": Recipe(make=emoji.names, unit="name, but for who it shows", distinct=("tags",)),
    "fortune_file": Recipe(make=reading_matter.fortunes, unit="text"),
    "hypernyms": Recipe(make=wordnet.hypernyms, unit=_WORD, distinct=_DEFINITION),
    "manual_language": Recipe(make=reading_matter.languages, unit="page", distinct=("passage",)),
    "number_words": Recipe(make=number_words.words, unit="number"),
    "package_dependency": Recipe(make=debian.dependencies, unit=_PACKAGE, distinct=("depends",)),
    "package_field": Recipe(make=debian.fields, unit=_PACKAGE, distinct=("control",)),
    "package_match": Recipe(make=debian.matches, unit=_PACKAGE, distinct=_DESCRIPTION),
    "package_section": Recipe(make=debian.sections, unit=_PACKAGE, distinct=_DESCRIPTION),
    "package_synopsis": Recipe(make=debian.synopses, unit=_PACKAGE, distinct=_DESCRIPTION),
    "part_of_speech": Recipe(make=wordnet.parts_of_speech, unit=_WORD, distinct=_DEFINITION),
    "same_sense": Recipe(make=wordnet.senses, unit=_WORD, distinct=("first", "second")),
    "word_field": Recipe(make=wordnet.fields, unit=_WORD, distinct=_DEFINITION),
    "word_sentiment": Recipe(
        make=wordnet.sentiments,
        unit="five letters that a word begins with",
        distinct=_DEFINITION,
    ),
    "word_use": Recipe(make=wordnet.uses, unit=_WORD, distinct=("word", "sentence")),
}
"""By name; `configs/task/NAME.yaml` says what each asks."""
