"""Files of which some is sound: compressed in several ways, or damaged in places."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tests.tools.corpus.making import build, documents, passages

GOOD = [json.dumps({"text": text}) for text in passages(40)]


def parquet(rows: list[bytes]) -> bytes:
    """A table whose column says that it is UTF-8, whatever it is."""
    column = pa.array(rows, pa.binary()).view(pa.string())
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": column}), content)
    return content.getvalue().to_pybytes()


_LINES = "\n".join(GOOD).encode() + b"\n"
_WIDE = {int(zstd.CompressionParameter.window_log): 29}
_CELLS = b'text,n\n"a page",1\n"na\xefve",2\n"of\0memory",3\nbus,\xef\n'
SOUND_PARTS = {
    # name: content, documents that are kept, and the bad ones
    "zeros.jsonl.gz": (gzip.compress(_LINES) + bytes(512), 40, []),
    "members.jsonl.gz": (gzip.compress(_LINES[:999]) + gzip.compress(_LINES[999:]), 40, []),
    "garbage.jsonl.gz": (gzip.compress(_LINES) + b"hello", 40, ["cannot be read from here on"]),
    "frames.jsonl.zst": (zstd.compress(_LINES[:999]) + zstd.compress(_LINES[999:]), 40, []),
    "skippable.json.zst": (b"\x50\x2a\x4d\x18\3\0\0\0abc" + zstd.compress(_LINES), 40, []),
    "garbage.jsonl.zst": (zstd.compress(_LINES) + b"hello", 40, ["cannot be read from here on"]),
    "marked.jsonl": (b"\xef\xbb\xbf" + _LINES.replace(b"\n", b"\r\n"), 40, []),
    "latin.csv": (_CELLS, 2, [":3: `text` is not UTF-8", ":4: `text` holds a byte of zero"]),
    "latin.parquet": (parquet([b"a page", b"na\xefve", b"of"]), 2, [":2: it cannot be read"]),
}


@pytest.mark.parametrize("name", SOUND_PARTS)
def test_what_is_sound_in_a_file_is_kept(name: str, tmp_path: Path, tokenizer: Path) -> None:
    content, kept, bad = SOUND_PARTS[name]
    source = tmp_path / name
    source.write_bytes(content)

    flags = (f"--skip-bad={len(bad)}", "--validation=0")
    out = build(source, *flags, out=tmp_path / "out", tokenizer=tokenizer)

    manifest = json.loads((out / "manifest.json").read_text())
    skipped = manifest["skipped"]
    is_cut = bad == ["cannot be read from here on"]
    assert manifest["sources"][0]["left_out_files"] == (
        {"cannot be read to its end": 1} if is_cut else {}
    )
    assert len(documents(out)) == kept
    assert len(skipped) == len(bad)
    assert all(reason in told for reason, told in zip(bad, skipped, strict=True)), skipped


def test_a_long_window_is_read(tmp_path: Path, tokenizer: Path) -> None:
    packer = zstd.ZstdCompressor(options=_WIDE)  # its size unknown, so that the window stands
    source = tmp_path / "a.jsonl.zst"
    source.write_bytes(packer.compress(_LINES) + packer.flush())
    with pytest.raises(OSError, match="memory"):
        pa.CompressedInputStream(pa.OSFile(str(source)), "zstd").read()

    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)

    assert len(documents(out)) == 40
