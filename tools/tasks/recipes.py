"""The tasks that can be built."""

from collections.abc import Mapping
from typing import Final

from tools.tasks import (
    from_debian,
    from_emoji,
    from_facts,
    from_numbers,
    from_reading_matter,
    from_wordnet,
)
from tools.tasks.build import Recipe

_PACKAGE: Final = "source package"
_WORD: Final = "word"
_WORDING: Final = "wording; every fact is in all splits"
_DEFINITION: Final = ("definition",)
_DESCRIPTION: Final = ("description",)

RECIPES: Final[Mapping[str, Recipe]] = {
    "capitals": Recipe(make=from_facts.capitals, unit=_WORDING),
    "definition_word": Recipe(make=from_wordnet.definitions, unit=_WORDING),
    "element_symbol": Recipe(make=from_facts.elements, unit=_WORDING),
    "emoji_group": Recipe(make=from_emoji.groups, unit="name, but for who it shows"),
    "emoji_name": Recipe(
        make=from_emoji.names, unit="name, but for who it shows", distinct=("tags",)
    ),
    "fortune_file": Recipe(make=from_reading_matter.fortunes, unit="text"),
    "hypernyms": Recipe(make=from_wordnet.hypernyms, unit=_WORD, distinct=_DEFINITION),
    "manual_language": Recipe(
        make=from_reading_matter.languages, unit="page", distinct=("passage",)
    ),
    "number_words": Recipe(make=from_numbers.words, unit="number"),
    "package_dependency": Recipe(
        make=from_debian.dependencies, unit=_PACKAGE, distinct=("depends",)
    ),
    "package_field": Recipe(make=from_debian.fields, unit=_PACKAGE, distinct=("control",)),
    "package_match": Recipe(make=from_debian.matches, unit=_PACKAGE, distinct=_DESCRIPTION),
    "package_section": Recipe(make=from_debian.sections, unit=_PACKAGE, distinct=_DESCRIPTION),
    "package_synopsis": Recipe(make=from_debian.synopses, unit=_PACKAGE, distinct=_DESCRIPTION),
    "part_of_speech": Recipe(make=from_wordnet.parts_of_speech, unit=_WORD, distinct=_DEFINITION),
    "same_sense": Recipe(make=from_wordnet.senses, unit=_WORD, distinct=("first", "second")),
    "word_field": Recipe(make=from_wordnet.fields, unit=_WORD, distinct=_DEFINITION),
    "word_sentiment": Recipe(
        make=from_wordnet.sentiments,
        unit="five letters that a word begins with",
        distinct=_DEFINITION,
    ),
}
"""By name; `configs/task/NAME.yaml` says what each asks."""
