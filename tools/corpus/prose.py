"""Turns reStructuredText, or plain text, into paragraphs of prose.

Markup is dropped where it would teach a small model only punctuation: adornments, tables,
directives, literal blocks, link targets. Words inside roles and emphasis stay.
"""

import re
from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
"""Raised whenever the same input gives other paragraphs, so that old corpora are not reused."""

_ADORNMENT: Final = re.compile(r"^([=\-~^\"'`#*+:.<>_])\1{2,}$")
_SIMPLE_TABLE: Final = re.compile(r"^\s*=+(?:\s+=+)+$")
_GRID_TABLE: Final = re.compile(r"^\s*(?:\+[-=+]{3,}|\|)")
_DIRECTIVE: Final = re.compile(r"^\.\.\s+([\w:+-]+)::\s*(.*)$")
_LIST_ITEM: Final = re.compile(r"^(?:[-*+•]|\(?(?:\d{1,3}|[a-zA-Z#])[.)])\s+(?=\S)")
_FIELD: Final = re.compile(r"^:[\w -]+:(?:\s|$)")

# Directives whose body is prose; the Python manual describes its functions inside such.
_PROSE_DIRECTIVE: Final = re.compile(
    r"""
    note|warning|tip|important|caution|attention|hint|danger|error|seealso|admonition|topic|rubric|
    epigraph|compound|container|glossary|impl-detail|
    versionadded|versionchanged|deprecated|deprecated-removed|
    (?:\w+:)?(?:function|method|class|data|attribute|exception|classmethod|staticmethod|module|
      decorator|option|cmdoption|describe|object|opcode|envvar|program|decoratormethod|
      coroutinefunction|coroutinemethod|abstractmethod|awaitablefunction|awaitablemethod|
      type|macro|member|var)
    """,
    re.VERBOSE,
)

_ROLE: Final = re.compile(r":[\w:+.-]+:`~?!?([^`]*)`")
_LINK: Final = re.compile(r"`([^`<]*?)\s*<[^`<>]*>`_{0,2}")
_TARGET_SUFFIX: Final = re.compile(r"\s*<[^<>]*>$")
_QUOTED: Final = re.compile(r"``([^`]+)``|`([^`]+)`_{0,2}")
_EMPHASIS: Final = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])")
_SUBSTITUTION: Final = re.compile(r"\|([\w .-]+)\|_{0,2}")
_FOOTNOTE: Final = re.compile(r"\s?\[(?:#\w*|\d+|\*)\]_")
_SPACES: Final = re.compile(r"\s+")


@dataclass(frozen=True)
class Paragraph:
    """One paragraph of a document, on one line."""

    text: str
    is_title: bool = False


def paragraphs(source: str) -> list[Paragraph]:
    """The prose of a document in reading order.

    Args:
        source: reStructuredText; plain text passes nearly unchanged.
    """
    return [
        Paragraph(text, is_title)
        for lines, is_title in _blocks(_without_markup_blocks(source.expandtabs().splitlines()))
        if _is_prose(text := _plain(" ".join(lines)), is_title=is_title)
    ]


def _without_markup_blocks(lines: list[str]) -> list[str]:
    """The lines outside directives that hold no prose, comments, tables and literal blocks."""
    kept: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at].rstrip()
        text = line.lstrip()
        indent = len(line) - len(text)
        at += 1
        if _SIMPLE_TABLE.match(line):
            at = _after_simple_table(lines, at)
        elif _GRID_TABLE.match(line):
            continue
        elif text == ".." or text.startswith(".. "):
            directive = _DIRECTIVE.match(text)
            if directive and _PROSE_DIRECTIVE.fullmatch(directive[1]):
                kept += ["", _opening(directive[1], directive[2]), ""]
            elif directive or not re.match(r"\.\. \[(?:#\w*|\d+|\*)\] ", text):
                at = _after_indented(lines, at, indent)
        elif text == "::" or text.endswith("::"):
            if text != "::":
                kept.append(line[:-1])
            kept.append("")
            at = _after_indented(lines, at, indent)
        elif text.startswith((">>> ", "$ ", "# ", "... ")) or _FIELD.match(text):
            kept.append("")
        else:
            kept.append(line)
    return kept


def _opening(name: str, argument: str) -> str:
    """What a directive says before its body."""
    if not argument or name not in {"versionadded", "versionchanged"}:
        return argument
    version, _, rest = argument.partition(" ")
    return f"{'Added' if name == 'versionadded' else 'Changed'} in version {version}. {rest}"


def _after_simple_table(lines: list[str], start: int) -> int:
    """The line after a table's last border: the border before a blank line."""
    for at in range(start, len(lines)):
        if _SIMPLE_TABLE.match(lines[at].rstrip()) and not "".join(lines[at + 1 : at + 2]).strip():
            return at + 1
    return start


def _after_indented(lines: list[str], start: int, indent: int) -> int:
    """The first later line that is not indented deeper than `indent`."""
    for at in range(start, len(lines)):
        text = lines[at].lstrip()
        if text and len(lines[at]) - len(text) <= indent:
            return at
    return len(lines)


def _blocks(lines: list[str]) -> list[tuple[list[str], bool]]:
    """Lines grouped into paragraphs, with whether each is a section title."""
    blocks: list[tuple[list[str], bool]] = []
    block: list[str] = []

    def end(*, is_title: bool = False) -> None:
        nonlocal block
        if block:
            blocks.append((block, is_title))
            block = []

    for line in lines:
        text = line.strip()
        if not text:
            end()
        elif _ADORNMENT.match(text):
            # Below one line it makes that a title; above one, or alone, it says nothing.
            end(is_title=len(block) == 1 and len(text) >= len(block[0]) - 2)
        else:
            item = _LIST_ITEM.match(text)
            if item:
                end()
                text = text[item.end() :]
            block.append(text)
    end()
    return blocks


def _plain(text: str) -> str:
    text = _ROLE.sub(lambda match: _TARGET_SUFFIX.sub("", match[1]), text)
    text = _LINK.sub(r"\1", text)
    text = _QUOTED.sub(lambda match: match[1] or match[2], text)
    text = _EMPHASIS.sub(r"\2", text)
    text = _FOOTNOTE.sub("", _SUBSTITUTION.sub(r"\1", text))
    return _SPACES.sub(" ", text.replace("\\ ", "")).strip()


def _is_prose(text: str, *, is_title: bool) -> bool:
    """Whether a paragraph is mostly English words, rather than a drawing or a register dump."""
    if is_title:
        return any(character.isalpha() for character in text)
    if len(text) < 25 or text.count(" ") < 3:
        return False
    # Bytes beyond ASCII are names and quotation marks in English, and the text in other languages.
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.75 * len(text) and len(text.encode()) <= 1.1 * len(text)
