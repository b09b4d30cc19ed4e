"""Directories of made-up text, so that corpora can be built in a second and offline."""

from pathlib import Path

SUBJECTS = ("mail", "radio", "trains", "water")
TEXT = (
    "the signal of a station reaches every line that carries water or light when some valve opens "
    "and each letter which waits there goes on to another town before evening comes"
)
WORDS = TEXT.split()


def write_text(directory: Path, *, num_documents: int = 120) -> Path:
    """Documents of three sections each, in directories that name their subjects."""
    for number in range(num_documents):
        subject = SUBJECTS[number % len(SUBJECTS)]
        path = directory / subject / f"document-{number}.rst"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [f"{_sentence(number + part, 4).title()}\n{'=' * 60}\n\n" + "\n".join(
            _sentence(number * 7 + part * 3 + line, 14) + "." for line in range(6)
        ) for part in range(3)]  # fmt: skip
        path.write_text("\n\n".join(blocks) + "\n")
    return directory


def _sentence(start: int, num_words: int) -> str:
    return " ".join(WORDS[(start * 5 + word * 3) % len(WORDS)] for word in range(num_words))
