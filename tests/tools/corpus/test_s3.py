"""Sources and corpora in a real S3 server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.lab_fixtures import S3Lab
from tests.tools.corpus.making import build, build_status, files_of, passages, picture, write_lines
from tests.tools.corpus.text import write_text
from tools.corpus.__main__ import main
from tools.corpus.workshop import Workshop
from tools.lab import s3


@pytest.fixture
def client(s3_lab: S3Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3.client(s3_lab.environment)


def objects(client: Any, bucket: str, prefix: str) -> dict[str, Any]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [entry for page in pages for entry in page.get("Contents", [])]
    return {entry["Key"].removeprefix(prefix).lstrip("/"): entry for entry in found}


def upload(client: Any, bucket: str, prefix: str, directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(directory).as_posix()}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


def download(client: Any, bucket: str, prefix: str, directory: Path) -> Path:
    for name, entry in objects(client, bucket, prefix).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(client, bucket, entry["Key"]))
    return directory


def content_of(client: Any, bucket: str, key: str) -> bytes:
    return client.get_object(Bucket=bucket, Key=key)["Body"].read()


def make_sources(directory: Path) -> Path:
    rows = [{"text": text} for text in passages(30)]
    write_lines(directory / "text/a.jsonl", rows)
    write_lines(directory / "table/b.jsonl", [{"image": "p/1.png", "caption": "a page"}] * 3)
    (directory / "table/p").mkdir()
    (directory / "table/p/1.png").write_bytes(picture(1))
    return directory


def test_from_a_bucket_into_a_bucket(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str], processes: None,
) -> None:  # fmt: skip
    local = make_sources(tmp_path / "in")
    upload(client, s3_lab.bucket, "raw", local)
    root = f"s3://{s3_lab.bucket}/raw"
    target = f"s3://{s3_lab.bucket}/corpora/one"
    flags = ("--part-mebibytes=0.002", "--dedup=minhash")

    sources = (f"{root}/text/*.jsonl", f"{root}/table")
    build(*sources, *flags, "--workers=2", out=target, tokenizer=tokenizer)

    stored = download(client, s3_lab.bucket, "corpora/one", tmp_path / "down")
    whole = build(
        f"{local}/text/*.jsonl", f"{local}/table", *flags, out=tmp_path / "whole",
        tokenizer=tokenizer,
    )  # fmt: skip
    # Manifests alone tell where it came from.
    one, two = (
        {name: found for name, found in files_of(place).items() if "manifest.json" not in name}
        for place in (stored, whole)
    )
    assert one == two
    assert not any(".building" in name for name in one)
    assert not list((tmp_path / "cache/semicausal/shards").glob("*/scratch"))

    assert main(["verify", target, "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["inspect", target, "--id", "text/a.jsonl:2"]) == 0
    assert passages(30)[1].split("\n\n")[0] in capsys.readouterr().out
    assert main(["stats", target, "--out", str(tmp_path / "s.html")]) == 0
    assert main(["cost", target]) == 0

    shard = min(name for name in one if name.endswith(".mds"))
    client.put_object(Bucket=s3_lab.bucket, Key=f"corpora/one/{shard}", Body=b"short")
    assert main(["verify", target, "--workers", "1"]) == 1
    assert "has 5 bytes where the index says" in capsys.readouterr().err.replace("\n", " ")


def test_a_build_into_a_bucket_goes_on(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    texts = passages(40)
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    source.write_text(source.read_text() + "{\n")
    target = f"s3://{s3_lab.bucket}/corpora/two"
    cut = "--part-mebibytes=0.002"

    assert build_status(source, cut, out=target, tokenizer=tokenizer) == 2
    before = objects(client, s3_lab.bucket, "corpora/two")
    records = [name for name in before if name.startswith(".building/parts/")]
    assert "manifest.json" not in before
    assert len(records) >= 4
    shards = [name for name in before if name.endswith(".mds")]

    build(source, cut, "--skip-bad=1", out=target, tokenizer=tokenizer)

    after = objects(client, s3_lab.bucket, "corpora/two")
    assert "manifest.json" in after
    kept = [name for name in shards if before[name]["LastModified"] == after[name]["LastModified"]]
    assert len(kept) >= len(shards) - 2, "all but what the part in hand had written"
    assert "parts are finished already" in capsys.readouterr().err
    assert main(["verify", target, "--workers", "1"]) == 0


def test_a_build_into_a_bucket_goes_on_where_another_cache_is(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = write_text(tmp_path / "notes", num_documents=12)
    # The largest part comes first and is sound, the second one is not.
    write_lines(tmp_path / "a.jsonl", [{"text": "the bus " * 1000}])
    (tmp_path / "b.jsonl").write_text("{" * 6000 + "\n")
    sources = (f"prose:{text}", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    target = f"s3://{s3_lab.bucket}/corpora/moved"
    cut = ("--part-mebibytes=0.002", "--validation=0")
    assert build_status(*sources, *cut, out=target, tokenizer=tokenizer) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "cache")

    build(*sources, *cut, "--skip-bad=1", out=target, tokenizer=tokenizer)

    assert "going on; 1 of " in capsys.readouterr().err
    assert main(["verify", target, "--workers", "1"]) == 0
    # Whatever the bucket is called by, it is the same place.
    monkeypatch.setenv("PLACE", f"{s3_lab.bucket}/corpora")
    assert Workshop("s3://$PLACE/moved").scratch == Workshop(target).scratch


def test_variables_stand_for_buckets(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload(client, s3_lab.bucket, "raw-too", make_sources(tmp_path / "in"))
    sources = ("s3://$BK/raw-too/text/*.jsonl", "s3://$BK/raw-too/table")
    assert build_status(*sources, out=tmp_path / "o", tokenizer=tokenizer) == 2
    assert "the variable $BK is not set" in capsys.readouterr().err
    monkeypatch.setenv("BK", s3_lab.bucket)
    monkeypatch.setenv("HERE", str(tmp_path))

    build(*sources, out="s3://$BK/corpora/var", tokenizer=tokenizer)

    manifest = json.loads(content_of(client, s3_lab.bucket, "corpora/var/manifest.json"))
    assert [source["path"] for source in manifest["sources"]] == list(sources)
    assert main(["verify", "s3://$BK/corpora/var", "--workers", "1"]) == 0
    assert main(["inspect", "s3://$BK/corpora/var"]) == 0
    again = ["build", "$HERE/in/text", "$HERE/out", "--tokenizer-of", "s3://$BK/corpora/var"]
    assert main([*again, "--validation", "0.2", "--workers", "1"]) == 0
    assert main(["cost", "$HERE/out"]) == 0


def test_buckets_that_cannot_be_used(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(30)])

    assert build_status(f"s3://{s3_lab.bucket}/none", out=tmp_path / "o", tokenizer=tokenizer) == 2
    assert f"There is no file or directory s3://{s3_lab.bucket}/none" in capsys.readouterr().err
    assert main(["verify", f"s3://{s3_lab.bucket}/none"]) == 2
    assert "is no corpus" in capsys.readouterr().err

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        target = f"s3://{s3_lab.bucket}/three"
        assert build_status(source, out=target, tokenizer=tokenizer) == 2
        refused = f"refuses the credentials for {target}"
        advice = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and S3_ENDPOINT_URL"
        told = capsys.readouterr().err
        assert refused in told
        assert advice in told
        assert build_status(f"{target}/a.jsonl", out=tmp_path / "o", tokenizer=tokenizer) == 2
        told = capsys.readouterr().err
        assert f"{refused}/a.jsonl" in told
        assert advice in told


def test_a_file_in_a_bucket_that_changes_is_noticed(
    client: Any, s3_lab: S3Lab, tmp_path: Path, tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = write_lines(tmp_path / "in/a.jsonl", [{"text": text} for text in passages(30)])
    upload(client, s3_lab.bucket, "changing", tmp_path / "in")
    url = f"s3://{s3_lab.bucket}/changing"
    build(url, out=tmp_path / "out", tokenizer=tokenizer)
    build(url, out=tmp_path / "out", tokenizer=tokenizer)
    assert "is already built" in capsys.readouterr().err

    source.write_text(source.read_text().replace("0", "1", 1))
    upload(client, s3_lab.bucket, "changing", tmp_path / "in")

    assert build_status(url, out=tmp_path / "out", tokenizer=tokenizer) == 2
    assert "(the files of source changing changed)" in capsys.readouterr().err
