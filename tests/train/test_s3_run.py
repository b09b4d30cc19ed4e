"""Training from a real S3 server equals training from a directory."""

from pathlib import Path

from tests.corpora import write_corpus
from tests.lab_fixtures import S3Lab
from tests.train.runs import run, start
from tools.lab.s3 import client


def upload(lab: S3Lab, corpus: Path, prefix: str) -> str:
    store = client(lab.environment)
    for path in sorted(corpus.rglob("*")):
        if path.is_file():
            store.upload_file(str(path), lab.bucket, f"{prefix}/{path.relative_to(corpus)}")
    return f"s3://{lab.bucket}/{prefix}"


def test_s3_run_equals_local_run(s3_lab: S3Lab, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    assert len(list((corpus / "train").glob("*.mds"))) > 1
    url = upload(s3_lab, corpus, "equal")
    local = run(corpus, tmp_path / "local", "zero.stage=1", ranks=2)
    remote = run(
        url,
        tmp_path / "remote",
        "zero.stage=1",
        f"storage.cache={tmp_path / 'cache'}",
        ranks=2,
        environment=s3_lab.environment,
    )
    assert [(r.step, r.loss, r.gradient_norm) for r in remote.train] == [
        (r.step, r.loss, r.gradient_norm) for r in local.train
    ]
    assert [v.loss for v in remote.validation] == [v.loss for v in local.validation]
    assert remote.baseline == local.baseline
    assert (tmp_path / "remote" / "tokenizer.json").exists()


def test_corpus_vanishing_from_s3_is_named(s3_lab: S3Lab, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    url = upload(s3_lab, corpus, "broken")
    victim = sorted((corpus / "train").glob("*.mds"))[1].name
    client(s3_lab.environment).delete_object(Bucket=s3_lab.bucket, Key=f"broken/train/{victim}")
    ended = start(
        url, tmp_path / "run", f"storage.cache={tmp_path / 'cache'}", environment=s3_lab.environment
    ).wait()
    assert ended.code == 2
    assert f"{url}/train/{victim} is missing" in ended.output
