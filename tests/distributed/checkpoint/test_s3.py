"""An S3 URL does what a directory does, on a real server."""

import os
from pathlib import Path

import pytest
import torch

from tests.distributed.checkpoint.runs import (
    Steps,
    saver_of,
    state_of,
    tensors_of,
    train_and_save,
)
from tests.distributed.toy import Toy, engine_of, train_step
from tests.lab_fixtures import S3Lab
from tools.checkpoint import main
from tools.lab.s3 import client
from tools.ranks import RankPool
from train.checkpoint import directory as checkpoint_directory
from train.checkpoint.directory import latest, resolve
from train.checkpoint.restore import read_state, restore
from train.errors import CheckpointError
from train.storage.place import Place


def _train_and_save(environment: dict[str, str], directory: Place) -> Steps:
    os.environ.update(environment)
    curve, _ = train_and_save(3, "fp32", directory, 3, 2)
    return curve


def _resume_and_save(environment: dict[str, str], directory: Place) -> Steps:
    os.environ.update(environment)
    engine = engine_of(Toy(frozen=True), stage=1)
    begin = restore(directory, engine).step
    curve = [train_step(engine, begin)]
    with saver_of(directory, keep=2) as saver:
        for step in (begin + 1, begin + 2, begin + 2):
            saver.save(engine, state_of(step), step=step)
    engine.close()
    return curve


def test_a_url_is_saved_to_restored_from_and_pruned(
    s3_lab: S3Lab,
    rank_pools: dict[int, RankPool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in s3_lab.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3_lab.bucket}/saved/checkpoints"
    place = Place.parse(url)
    environment = dict(s3_lab.environment)
    store = client(s3_lab.environment)

    def keys() -> list[str]:
        found = store.list_objects_v2(Bucket=s3_lab.bucket, Prefix="saved/")
        return [entry["Key"].removeprefix("saved/checkpoints/") for entry in found["Contents"]]

    # Left by a writer that died.
    dead = "saved/checkpoints/step_00000001/chunks-00000.safetensors"
    store.put_object(Bucket=s3_lab.bucket, Key=dead, Body=b"half")
    curve = rank_pools[2].run(_train_and_save, environment, place)[0]
    local, _ = rank_pools[2].run(train_and_save, 3, "fp32", tmp_path, 3, 2)[0]
    assert curve == local
    assert keys() == [
        "latest",
        *(f"step_00000002/chunks-{rank:05d}.safetensors" for rank in range(2)),
        "step_00000002/index.json",
        "step_00000002/state.json",
    ]
    here, there = tensors_of(tmp_path), tensors_of(place)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert resolve(Place.parse(f"s3://{s3_lab.bucket}/saved")) == place / "step_00000002"
    assert read_state(place).model_dump()["samples"] == 16

    resumed = rank_pools[1].run(_resume_and_save, environment, place)[0]
    assert resumed == [pytest.approx(curve[2], rel=1e-6)]
    assert checkpoint_directory.complete(place) == ["step_00000004", "step_00000004.2"]
    assert latest(place) == place / "step_00000004.2"
    assert main(["verify", url]) == 0
    assert f"{url}/step_00000004.2: whole" in capsys.readouterr().out
    assert main(["prune", url, "--keep", "1"]) == 0
    assert "removed step_00000004\n" in capsys.readouterr().out
    assert checkpoint_directory.complete(place) == ["step_00000004.2"]
    assert all(key == "latest" or key.startswith("step_00000004.2/") for key in keys())

    victim = "saved/checkpoints/step_00000004.2/chunks-00000.safetensors"
    body = bytearray(store.get_object(Bucket=s3_lab.bucket, Key=victim)["Body"].read())
    body[-1] ^= 1
    store.put_object(Bucket=s3_lab.bucket, Key=victim, Body=bytes(body))
    assert main(["verify", url]) == 1
    fault = f"{url}/step_00000004.2/chunks-00000.safetensors is damaged: the checksum of its slice"
    assert fault in capsys.readouterr().out
    store.delete_object(Bucket=s3_lab.bucket, Key=victim)
    assert main(["verify", url]) == 1
    assert "chunks-00000.safetensors, which holds " in capsys.readouterr().out


def _save_with_wrong_secret(environment: dict[str, str], directory: Place) -> str:
    before = dict(os.environ)
    os.environ.update(environment, AWS_SECRET_ACCESS_KEY="wrong")
    engine = engine_of(Toy(), stage=1)
    saver = saver_of(directory, continues=None)
    saver.save(engine, state_of(1), step=1)
    with pytest.raises(CheckpointError) as caught:
        saver.finish()
    engine.close()
    os.environ.update({name: before.get(name, "") for name in environment})
    return str(caught.value)


def test_refused_credentials_are_told_on_every_rank(
    s3_lab: S3Lab, rank_pools: dict[int, RankPool]
) -> None:
    place = Place.parse(f"s3://{s3_lab.bucket}/elsewhere")
    environment = dict(s3_lab.environment)
    for message in rank_pools[2].run(_save_with_wrong_secret, environment, place):
        assert "s3://lab/elsewhere cannot be written" in message
        assert "the secret key does not match the access key" in message
