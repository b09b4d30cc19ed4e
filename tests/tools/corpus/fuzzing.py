"""Inputs of a builder drawn at random: trees of files of every kind, sound and damaged.

What is drawn depends on the seed alone. What is known of a file is noted when it is written.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from tests.tools.corpus.making import picture, sound, video

SENTENCE = "The driver asks the bus for its device and maps a page of memory"
WORDS = [
    "the", "kernel", "maps", "a", "page", "café", "日本語", "🙂", "</d>", "<s>", "</S>", "[[x]]",
    "\u2028", "\ufeff", "\u200d", "e\u0301", "THE", "  ", "\t", "$HOME", "\\", '"', "'", "ß", "İ",
]  # fmt: skip
FIELDS = ("text", "caption", "image", "audio", "video", "segments", "id", "other", "")
NAMES = ("a", "b", "pages of memory", "café", "x[1]", "y*", "q?", "#1", "$HOME", "~", "n=v", "%41")
ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".csv", ".parquet")
TEXTS = (".txt", ".md", ".TXT")
PROSE = (".rst", ".txt", ".md", ".rst.gz")
OTHERS = ("", ".pdf", ".json", ".py", ".gz")


@dataclass(kw_only=True)
class Drawn:
    """A tree of files, and what is to be said of it.

    Attributes:
        root: its directory.
        rows: of files that are sound, by name; nothing is known of others.
        payloads: files that rows may name.
        entries: names of all files and links.
    """

    root: Path
    rows: dict[str, int] = field(default_factory=dict)
    payloads: set[str] = field(default_factory=set)
    entries: set[str] = field(default_factory=set)


class Chance(random.Random):
    """Draws inputs."""

    def happens(self, share: float) -> bool:
        return self.random() < share

    def text(self) -> str:
        paragraphs = [
            " ".join(self.choices(WORDS, k=self.randint(1, 12)))
            for _ in range(self.choice((1, 1, 2, 3)))
        ]
        if self.happens(0.5):
            paragraphs.append(f"{SENTENCE} {self.random()}.")
        return self.choice(("\n\n", "\r\n\r\n", "\n \n", "\n")).join(paragraphs)

    def value(self, depth: int = 0) -> Any:
        kinds = [
            lambda: None, lambda: True, lambda: self.randint(-9, 9), lambda: 10 ** 400,
            lambda: 1e308 * 10, lambda: self.text(), lambda: "", lambda: " \n", lambda: "\ud800",
            lambda: "a\0b", lambda: float("nan"),
        ]  # fmt: skip
        if depth < 3:
            kinds += [
                lambda: [self.value(depth + 1) for _ in range(self.randint(0, 3))],
                lambda: {self.choice(FIELDS): self.value(depth + 1) for _ in range(2)},
            ]
        return self.choice(kinds)()

    def segment(self, payloads: list[str]) -> Any:
        if self.happens(0.1):
            return self.value()
        if payloads and self.happens(0.2):
            found: dict[str, Any] = {"image": self.choice(payloads)}
        else:
            found = {"text": self.text()}
        for key in ("span", "scored", "ends_paragraph"):
            if self.happens(0.15):
                found[key] = self.choice((True, False, True, False, None, 1, "yes"))
        return found

    def row(self, payloads: list[str], *, oddness: float) -> Any:
        if self.happens(oddness):
            return self.value()
        if self.happens(0.15):
            return {"segments": [self.segment(payloads) for _ in range(self.randint(0, 4))]}
        found: dict[str, Any] = {"text": self.text(), "id": self.randint(0, 10**6)}
        if payloads and self.happens(0.2):
            found["image"] = self.choice(payloads)
        for key in FIELDS:
            if self.happens(oddness / 4):
                found[key] = self.value()
        return found

    def encoded(self, text: str) -> tuple[bytes, bool]:
        """A text in some encoding, and whether it is UTF-8."""
        name = "utf-8" if self.happens(0.8) else self.choice(
            ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252")
        )  # fmt: skip
        content = text.encode(name, "surrogatepass" if name.startswith("utf") else "replace")
        return content, name.startswith("utf-8")

    def packed(self, content: bytes, suffix: str) -> bytes:
        halves = [content]
        if self.happens(0.3):
            middle = len(content) // 2
            halves = [content[:middle], content[middle:]]
        if suffix.endswith(".gz"):
            return b"".join(gzip.compress(half, mtime=0) for half in halves)
        if suffix.endswith(".zst"):
            return b"".join(zstd.compress(half) for half in halves)
        return content

    def damaged(self, content: bytes) -> bytes:
        kind = self.randrange(6)
        at = self.randrange(len(content) + 1)
        if kind == 0:
            return content[:at]
        if kind == 1:
            return content + bytes(self.randint(1, 600))
        if kind == 2:
            return content + self.randbytes(20)
        if kind == 3:
            return b""
        if kind == 4:
            return self.randbytes(self.randint(1, 99))
        flipped = bytearray(content)
        for _ in range(self.randint(1, 4)):
            if flipped:
                flipped[self.randrange(len(flipped))] ^= 1 << self.randrange(8)
        return bytes(flipped)

    def table(self, suffix: str, payloads: list[str]) -> tuple[bytes, int | None]:
        """A file of rows, and how many it has, if nothing about it is odd."""
        oddness = self.choice((0.0, 0.0, 0.0, 0.05, 0.5))
        rows = [self.row(payloads, oddness=oddness) for _ in range(self.choice((0, 1, 3, 9, 20)))]
        if suffix == ".parquet":
            return self.parquet(rows)
        if suffix == ".csv":
            return self.csv(rows)
        end = self.choice(("\n", "\n", "\r\n", "\n\n"))
        lines = [json.dumps(row, ensure_ascii=self.happens(0.5)) for row in rows]
        text = end.join(lines) + self.choice((end, ""))
        if "\ud800" in text or self.happens(0.02):
            return self.packed(text.encode("utf-8", "surrogatepass"), suffix), None
        content, is_sound = self.encoded(text)
        return self.packed(content, suffix), len(rows) if is_sound else None

    def csv(self, rows: list[Any]) -> tuple[bytes, int | None]:
        file = io.StringIO(newline="")
        columns = self.sample(FIELDS[:-1], k=self.randint(1, 5))
        if self.happens(0.9):
            columns = ["text", *(name for name in columns if name != "text")]
        writer = csv.writer(file, lineterminator=self.choice(("\n", "\r\n")))
        writer.writerow(columns)
        rows = [row for row in rows if isinstance(row, dict)]
        for row in rows:
            writer.writerow(
                ["x" if name == "segments" else str(row.get(name, "x")) for name in columns]
            )
        content, is_sound = self.encoded(file.getvalue())
        return content, len(rows) if is_sound else None

    def parquet(self, rows: list[Any]) -> tuple[bytes, int | None]:
        rows = [row for row in rows if isinstance(row, dict)]
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            table = pa.table({"text": [self.text() for _ in rows]})
        if "text" in table.column_names and self.happens(0.2):
            kind = self.choice((pa.large_string(), pa.binary(), pa.string_view()))
            at = table.column_names.index("text")
            with contextlib.suppress(pa.ArrowException):
                table = table.set_column(at, "text", table["text"].cast(kind))
        sink = io.BytesIO()
        try:
            pq.write_table(table, sink, row_group_size=self.choice((2, 100)))
        except pa.ArrowException:  # such as a structure without fields
            return b"PAR1", None
        return sink.getvalue(), len(rows)

    def payload(self, suffix: str) -> bytes:
        made = {".png": picture(self.randrange(256)), ".wav": sound(), ".mp4": video()}
        return made[suffix] if self.happens(0.8) else self.damaged(made[suffix])

    def tree(self, root: Path, *, is_prose: bool) -> Drawn:
        drawn = Drawn(root=root)
        root.mkdir(parents=True)
        directories = ["", *(self.choice(NAMES) + "/" for _ in range(self.randint(0, 2)))]
        if self.happens(0.1):
            directories.append(".hidden/")
        payloads: list[str] = []
        for _ in range(self.randint(1, 6)):
            kinds = [PROSE, PROSE, OTHERS] if is_prose else [ROWS, ROWS, ROWS, TEXTS, OTHERS]
            suffix = self.choice(self.choice(kinds))
            if not is_prose and self.happens(0.2):
                suffix = self.choice((".png", ".wav", ".mp4"))
            directory = self.choice(directories)
            stem = self.choice(NAMES)
            if self.happens(0.1):
                stem = self.choice((".dot", "README", "README", "caf\udce9"))
            name = f"{directory}{stem}{suffix}"
            if name in drawn.entries or (root / name).exists():
                continue
            rows = None
            if suffix in ROWS:
                content, rows = self.table(suffix, payloads if not directory else [])
            elif suffix in (".png", ".wav", ".mp4"):
                content = self.payload(suffix)
                if suffix == ".png" and not directory:
                    payloads.append(name)
                if self.happens(0.6):
                    self.write(drawn, f"{directory}{stem}.txt", self.encoded(self.text())[0])
            elif is_prose:
                text = f"{SENTENCE}.\n\n{self.text()}"
                content = text.encode() if self.happens(0.7) else self.encoded(text)[0]
                content = self.packed(content, suffix)
            else:
                content = self.encoded(self.text())[0]
            if self.happens(0.1 if is_prose else 0.2):
                content, rows = self.damaged(content), None
            if self.write(drawn, name, content) and rows:
                drawn.rows[name] = rows
        if not is_prose and self.happens(0.6):
            lines = [json.dumps({"text": self.text(), "id": -number}) for number in range(1, 9)]
            if self.write(drawn, "sound.jsonl", "\n".join(lines).encode()):
                drawn.rows["sound.jsonl"] = len(lines)
        drawn.payloads.update(payloads)
        for _ in range(self.choice((0, 0, 1, 3))):
            self.link(drawn, directories)
        return drawn

    def write(self, drawn: Drawn, name: str, content: bytes) -> bool:
        path = drawn.root / name
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        drawn.entries.add(name)
        return True

    def link(self, drawn: Drawn, directories: list[str]) -> None:
        name = self.choice(directories) + f"link{self.randrange(99)}" + self.choice(
            (".jsonl", ".txt", "", ".png")
        )  # fmt: skip
        path = drawn.root / name
        if os.path.lexists(path) or not path.parent.is_dir():
            return
        kind = self.randrange(5)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1 and drawn.entries:
            path.symlink_to(drawn.root / self.choice(sorted(drawn.entries)))
        elif kind == 2:
            path.symlink_to(drawn.root)
        elif kind == 3:
            path.symlink_to("nowhere")
        else:
            outside = drawn.root.parent / "outside.jsonl"
            outside.write_text(json.dumps({"text": self.text()}) + "\n")
            path.symlink_to(outside)
        drawn.entries.add(name)

    def source(self, drawn: Drawn) -> str:
        """The tree as a builder is told of it; what a pattern does not match is not given."""
        if self.happens(0.85) or not any("/" not in name for name in drawn.entries):
            return str(drawn.root)
        drawn.entries = {name for name in drawn.entries if not re.search(r"(^|/)\.", name)}
        everything = self.choice(("**", "**/[!z-a]*", "**/[!]]*"))
        return f"{drawn.root}/{everything}"

    def flags(self) -> list[str]:
        found = [f"--skip-bad={self.choice((0, 3, 100, 100, 100))}"]
        for share, flag in (
            (0.8, "--media"), (0.3, "--part-mebibytes=0.001"), (0.1, "--id-field=id"),
            (0.05, "--text-field=other"), (0.1, "--dedup=exact"), (0.05, "--dedup=minhash"),
            (0.9, "--validation=0"),
        ):  # fmt: skip
            if self.happens(share):
                found.append(flag)
        return found
