from textwrap import dedent

import pytest

from tools.corpus.prose import Paragraph, paragraphs


def texts(source: str) -> list[str]:
    return [paragraph.text for paragraph in paragraphs(dedent(source))]


def test_titles_and_wrapped_paragraphs() -> None:
    source = """\
        =====
        Title
        =====

        A paragraph that is wrapped
        over two lines of the file.

        Section
        -------
        Another paragraph right below its title, which is common.
        """
    assert paragraphs(dedent(source)) == [
        Paragraph("Title", is_title=True),
        Paragraph("A paragraph that is wrapped over two lines of the file."),
        Paragraph("Section", is_title=True),
        Paragraph("Another paragraph right below its title, which is common."),
    ]


def test_list_items_are_paragraphs() -> None:
    source = """\
        - The first item of a list, which goes on
          in the next line.
        - The second item of the same list.
        """
    assert texts(source) == [
        "The first item of a list, which goes on in the next line.",
        "The second item of the same list.",
    ]


KEPT = "This sentence stands before what is dropped."
AFTER = "This sentence stands after what was dropped."


@pytest.mark.parametrize(
    "dropped",
    [
        ".. toctree::\n   :maxdepth: 2\n\n   one two three four five six seven\n",
        ".. a comment that runs over\n   several lines of the text file\n",
        ".. _a-label-of-this-place:\n",
        "..\n   A comment in a block of its own, as some files write it.\n",
        "====== ======= =====\nname   meaning words\n====== ======= =====\n"
        "one    thing   of many words in a row\n====== ======= =====\n",
        "+-------+-------------------------+\n| a b c | some words in this cell |\n"
        "+-------+-------------------------+\n",
        ".. code-block:: c\n\n   int main of the program that is shown here\n",
        "::\n\n   some literal text that nobody reads as prose\n",
        ">>> call the function with some argument words\n",
        ":Author: Somebody with a long name of words\n",
        "0x12 0x34 0x56 0x78 0x9a 0xbc 0xde 0xf0 0x11 0x22\n",
        "Этот абзац написан на русском языке, а не на английском.\n",
    ],
)
def test_what_is_not_prose_is_dropped(dropped: str) -> None:
    assert texts(f"{KEPT}\n\n{dropped}\n{AFTER}\n") == [KEPT, AFTER]


def test_a_literal_block_leaves_its_introduction() -> None:
    source = """\
        The following call asks the kernel for memory::

            int call(int a, int b);

        It returns a pointer to the memory.
        """
    assert texts(source) == [
        "The following call asks the kernel for memory:",
        "It returns a pointer to the memory.",
    ]


def test_the_body_of_a_note_stays() -> None:
    source = """\
        .. note::

           Notes are prose like any other, and stay where they are.

        .. versionchanged:: 3.11 The function accepts keywords now.
        """
    assert texts(source) == [
        "Notes are prose like any other, and stay where they are.",
        "Changed in version 3.11. The function accepts keywords now.",
    ]


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("Call :func:`asyncio.run` for the program.", "Call asyncio.run for the program."),
        ("See :ref:`the section <label>` for more of it.", "See the section for more of it."),
        ("See `the page <https://x.org>`_ for more of it.", "See the page for more of it."),
        ("The ``name`` of a *thing* is **not** it.", "The name of a thing is not it."),
        ("It takes 2 * 3 * 4 units of memory.", "It takes 2 * 3 * 4 units of memory."),
        ("This was shown long ago [#f1]_ by somebody.", "This was shown long ago by somebody."),
    ],
)  # fmt: skip
def test_words_inside_markup_stay(markup: str, plain: str) -> None:
    assert texts(markup) == [plain]


def test_any_text_is_survived() -> None:
    for source in ("", "\n\n", "====", ".. ", "::", "=== ===", "a\n===\n===\n", "+---", "\0\r\t"):
        paragraphs(source)
