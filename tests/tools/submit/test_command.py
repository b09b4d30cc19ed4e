"""What is shown and refused before anything is submitted, and what a job sets up; no Slurm."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.lab_fixtures import S3Lab
from tests.tools.keep.test_deciding import attempt
from tools.keep.attempt import ATTEMPTS_NAME, Attempt
from tools.submit.__main__ import main
from tools.submit.flags import comment_of, digest_of, is_for
from tools.submit.job import FIRST_JOB, LINK, arguments_of_task
from tools.submit.job import main as set_up
from tools.submit.refusing import machine_of
from tools.submit.standing import complete
from train.cluster import ClusterConfig
from train.exit_status import ExitStatus
from train.storage.lease import Lease
from train.storage.place import Place

TINY = "configs/experiment/tiny.yaml"
LAB = "configs/cluster/lab.yaml"
METALM = "configs/experiment/metalm_1p3b.yaml"


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without Slurm, where dry runs go on."""
    monkeypatch.setenv("PATH", "/nowhere")


def dry(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main([*arguments, "--dry-run"])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_dry_run_shows_the_whole_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("KEEP_OPTIONS", "--warm")
    cluster = tmp_path / "a b.yaml"
    cluster.write_text(
        "cluster: {partition: gpu, account: me, nodes: 2, ranks_per_node: 8, gpu: h100,\n"
        "  gpu_flag: '--gres=gpu:h100:{count}', cpus_per_rank: 12, memory_per_node: 900G,\n"
        "  time_limit: 2-00, warn_seconds: 300, sbatch: [--qos=long], launcher: torchrun,\n"
        "  environment: {NCCL_IB_PKEY: 3, NCCL_DEBUG: it's}, setup: [module load cuda],\n"
        "  container: [apptainer, exec, my image.sif], scratch: $HOME/scratch}\n"
    )
    run = tmp_path / "my run"
    status, out, _ = dry(capsys, METALM, str(cluster), f"run_directory={run}", "--chain", "2")
    assert status == ExitStatus.COMPLETE
    repository = Path(__file__).parents[3]
    flags = (
        f"sbatch --parsable --job-name=metalm_1p3b '--comment={comment_of([run])}' --export=ALL "
        "--partition=gpu --account=me --nodes=2 --ntasks-per-node=8 --cpus-per-task=12 "
        "--mem=900G --time=2-00 --signal=B:USR1@300 --gres=gpu:h100:8 --no-requeue --qos=long"
    )
    job = f"{repository}/slurm/pretrain.sh {METALM} '{cluster}' 'run_directory={run}'"
    keep = "KEEP_OPTIONS='--warm --no-requeue'"
    assert out.split("\n\n")[0] == (
        f"SEMICAUSAL_REPOSITORY={repository} SEMICAUSAL_CHAIN=1 {keep} \\\n    {flags} {job}\n"
        f"SEMICAUSAL_REPOSITORY={repository} SEMICAUSAL_CHAIN=2 {keep} "
        f"SEMICAUSAL_CHAIN_SINCE=JOB_1 \\\n    {flags} "
        f"--dependency=afterany:JOB_1 {job}"
    )
    assert "hunter2" not in out
    script = out.partition("start:\n")[2] + 'printf "%s|" "$scratch" "$launcher" "$inside" '
    script += '"${environment[@]}" "${arguments[@]}"'
    found = subprocess.run(
        ["/bin/bash", "-c", f"module() {{ :; }}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    home = os.environ["HOME"]
    assert found.stdout.split("|")[:-1] == [
        *(f"{home}/scratch", "torchrun", "apptainer exec 'my image.sif'"),
        *(f"TMPDIR={home}/scratch", f"XDG_CACHE_HOME={home}/scratch/cache"),
        *("NCCL_IB_PKEY=3", "NCCL_DEBUG=it's"),
        *(METALM, str(cluster), f"run_directory={run}"),
    ]


@pytest.mark.parametrize("asked", [["--seeds", "3"], ["--sweep", "seed=3"]])
def test_one_named_run_is_an_array_too(
    capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    status, out, _ = dry(capsys, TINY, LAB, "run_directory=runs/no", *asked)
    assert status == ExitStatus.COMPLETE
    assert "--array=0-0 --output=slurm-%x-%A_%a.out" in out
    assert " -- seed=3 run_directory=runs/no-seed_3 name=tiny-seed_3\n" in out
    task = shlex.split(out.partition("\n\n")[0].partition("slurm/pretrain.sh")[2])
    assert arguments_of_task(task, "0")[-3] == "seed=3"


def test_an_array_has_a_task_for_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = dry(capsys, TINY, LAB, "run_directory=runs/no", "--seeds", "3", "4")
    assert status == ExitStatus.COMPLETE
    assert "--array=0-1 --output=slurm-%x-%A_%a.out" in out
    assert (
        "-- seed=3 run_directory=runs/no-seed_3 name=tiny-seed_3 "
        "-- seed=4 run_directory=runs/no-seed_4 name=tiny-seed_4\n"
    ) in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY], "cluster: is missing: name a cluster's file"),
        ([TINY, "configs/cluster/lba.yaml"], "no such file; did you mean configs/cluster/lab.yaml"),
        ([TINY, LAB, "cluster.partitoin=x"], "cluster.partitoin: no such key; did you mean clus"),
        ([TINY, LAB, "cluster.time_limit=soon"], "cluster.time_limit: must be a time as Slurm"),
        ([TINY, LAB, "cluster.spare_nodes=-1"], "cluster.spare_nodes: input should be greater"),
        ([TINY, LAB, "keep.warmm=true"], "keep.warmm: no such key; did you mean keep.warm?"),
        ([TINY, LAB, "cluster.sbatch=[--array=3]"], "cluster.sbatch.0: --array is set by whoever"),
        ([TINY, LAB, "cluster.gpu_flag=--gres=gpu"], "cluster.gpu_flag: must hold {count}"),
        ([TINY, LAB, "cluster.environment.A_TOKEN=x"], "A_TOKEN looks like a secret"),
        ([TINY, LAB, "cluster.environment.A=true"], "A must be text or a whole number"),
        ([TINY, LAB, "cluster.nodes=3", "layout.pipeline=2"], "layout: tensor 2 x pipeline 2 n"),
        ([TINY, LAB, "batch.sequences=6"], "batch.sequences: 6 does not divide into 2 data rank"),
        (
            [METALM, LAB, "cluster.gpu=h100", "batch.micro_sequences=64", "batch.sequences=256"],
            r"layout: a rank of 4 x H100 SXM 80 GB needs",
        ),
        (
            [TINY, LAB, "checkpoint.local={directory: /scratch, every_steps: 5, copies: 2}"],
            "copies: 2 of each node's share, but cluster.nodes is 2: set it to 1, or take",
        ),
        (
            [TINY, LAB, "checkpoint.directory=s3://lab/saved"],
            "checkpoint.directory: s3://lab/saved is in a store: set run_mirror=s3://lab/saved",
        ),
        ([TINY, LAB, "cluster.memory_per_node=1M"], "(0.0 of them usable): more ZeRO"),
        ([TINY, LAB, "cluster.setup=[if true; then]"], "cluster.setup.0: syntax error: unexpected"),
        ([TINY, "/dev/fd/9"], "/dev/fd/9: jobs cannot read what a shell makes here"),
        ([TINY, LAB, "--sweep", "optim.lrr=1,2"], "optim.lrr: no such key; did you mean optim.lr?"),
    ],
)  # fmt: skip
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = dry(capsys, *arguments, "run_directory=runs/none")
    assert (status, out) == (ExitStatus.MISTAKE, "")
    assert message in err
    told = [line for line in err.splitlines() if "squeue" not in line]
    assert len(told) == 1, told


def test_a_job_has_its_spare_nodes_besides(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = dry(capsys, TINY, LAB, "cluster.spare_nodes=1", "run_directory=runs/none")
    assert status == ExitStatus.COMPLETE
    assert "--nodes=3 --ntasks-per-node=2" in out


def test_all_faults_are_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = complete_run(tmp_path)
    _, _, err = dry(capsys, TINY, LAB, f"run_directory={run}", "steps=6", "batch.sequences=6",
                    "optim.warmup_steps=2")  # fmt: skip
    assert "batch.sequences: 6 does not divide" in err
    assert f"run_directory: {run} is complete (6 of 6 steps): raise steps, or name another" in err


def complete_run(directory: Path) -> Path:
    """As it is after six steps, the last of which was left out."""
    run = directory / "run"
    run.mkdir()
    (run / "summary.json").write_text('{"steps": 6, "validation_loss_last": 3.5}')
    return run


@pytest.mark.parametrize("summary", ["", "{}", "[]", '{"steps": "6"}', '{"steps": 6', "[" * 9999])
def test_a_summary_that_says_nothing_is_no_complete_run(tmp_path: Path, summary: str) -> None:
    assert complete(tmp_path, steps=6) is None
    (tmp_path / "summary.json").write_text(summary)
    assert complete(tmp_path, steps=6) is None


def test_a_finished_run_goes_on_with_more_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = complete_run(tmp_path)
    assert dry(capsys, TINY, LAB, f"run_directory={run}", "steps=7")[0] == ExitStatus.COMPLETE


@pytest.mark.parametrize("where", ["here", "beside its checkpoints", "in a store"])
def test_a_run_that_is_written_is_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    where: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [TINY, LAB, f"run_directory={tmp_path / 'run'}"]
    place = Place.of(tmp_path / "run" / "checkpoints")
    if where == "beside its checkpoints":
        arguments.append(f"checkpoint.directory={tmp_path / 'elsewhere'}")
        place = Place.of(tmp_path / "run")
    if where == "in a store":
        lab: S3Lab = request.getfixturevalue("s3_lab")
        for name, value in lab.environment.items():
            monkeypatch.setenv(name, value)
        store = f"s3://{lab.bucket}/{tmp_path.name}"
        arguments.append(f"cluster.store={store}")
        place = Place.parse(f"{store}/run/checkpoints")
    assert dry(capsys, *arguments)[0] == ExitStatus.COMPLETE
    with Lease(place, instead="") as lease:
        lease.take()
        status, _, err = dry(capsys, *arguments)
    assert status == ExitStatus.MISTAKE
    key = "run_mirror: s3://" if where == "in a store" else "run_directory: /"
    assert key in err
    assert f"run is being written: pid {os.getpid()} of " in err


def test_without_slurm_nothing_is_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([TINY, LAB, "run_directory=runs/none"]) == ExitStatus.MISTAKE
    assert "squeue: is not found: submit on a host of the cluster" in capsys.readouterr().err


def test_jobs_are_known_by_their_comment(tmp_path: Path) -> None:
    runs = [tmp_path / f"a, b-{seed}" for seed in range(140)]
    comment = comment_of(runs)
    assert len(comment.encode()) <= 1024, "as many bytes as Slurm takes"
    (tmp_path / "link").symlink_to(tmp_path / "a, b-7")
    for run in (*runs, tmp_path / "link"):
        assert is_for(comment, digest_of(run))
    for other in (tmp_path / "a, b", tmp_path / "a, b-140"):
        assert not is_for(comment, digest_of(other))
    alone = comment_of([runs[0]])
    assert [is_for(alone, digest_of(run)) for run in runs[:2]] == [True, False]
    for others in ("(null)", "", f"nightly {digest_of(runs[0])} ", f"semicausal x{alone[11:]}"):
        assert not is_for(others, digest_of(runs[0]))


def test_all_of_a_node_s_memory_is_what_the_planner_knows_without() -> None:
    unknown = machine_of(ClusterConfig(ranks_per_node=2))
    for memory in ("0", "0G"):
        assert machine_of(ClusterConfig(ranks_per_node=2, memory_per_node=memory)) == unknown
    given = machine_of(ClusterConfig(ranks_per_node=2, memory_per_node="2G"))
    assert given.memory_bytes == 2**30


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        ([], None),
        ([attempt("stopped by a signal", last=3)], None),
        ([attempt("dead")], None),
        ([attempt("dead", last=3)] * 4, "was given up, for the last 3 attempts"),
        ([attempt("interrupted", last=3)], "was given up, for a person has ended it"),
        ([attempt("user error")], "it would fail again until something is changed"),
    ],
)  # fmt: skip
def test_a_later_link_of_a_chain_looks_first(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    attempts: list[Attempt],
    why: str | None,
) -> None:
    made = [each.model_copy(update={"job": "512"}) for each in attempts]
    text = "".join(f"{each.model_dump_json()}\n" for each in made)
    (tmp_path / ATTEMPTS_NAME).write_text(text)
    arguments = [TINY, LAB, f"run_directory={tmp_path}"]
    assert set_up(arguments) == ExitStatus.COMPLETE
    assert "exit" not in capsys.readouterr().out, "the first link begins anew"
    monkeypatch.setenv(LINK, "2")
    for first, is_of_chain in (("513", False), ("512", True), ("500", True)):
        monkeypatch.setenv(FIRST_JOB, first)
        assert set_up(arguments) == ExitStatus.COMPLETE
        shown = capsys.readouterr()
        assert (shown.out == "exit 0\n") == (why is not None and is_of_chain)
        assert (why or "") in shown.err or not is_of_chain


def test_what_ran_without_a_job_says_nothing_of_a_chain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_hand = attempt("user error").model_dump_json()
    (tmp_path / ATTEMPTS_NAME).write_text(f"{by_hand}\n")
    monkeypatch.setenv(LINK, "2")
    monkeypatch.setenv(FIRST_JOB, "7")
    assert set_up([TINY, LAB, f"run_directory={tmp_path}"]) == ExitStatus.COMPLETE
    assert "exit" not in capsys.readouterr().out


def test_a_link_behind_a_complete_run_does_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = complete_run(tmp_path)
    monkeypatch.setenv(LINK, "2")
    assert set_up([TINY, f"run_directory={run}", "steps=6"]) == ExitStatus.COMPLETE
    shown = capsys.readouterr()
    assert shown.out == "exit 0\n"
    assert f"job 2 of the chain does nothing: {run} is complete (6 of 6 steps)" in shown.err


def test_a_job_of_another_size_than_the_file_says_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tasks, spare, told in (
        ("4", 0, ""),
        ("2", 0, "cluster: 2 node(s) of 2 rank(s), but sbatch was told 2 "),
        ("6", 1, ""),
        ("4", 1, "cluster: 2 and 1 spare node(s) of 2 rank(s), but sbatch was told 4 "),
    ):
        monkeypatch.setenv("SLURM_NTASKS", tasks)
        assert set_up([TINY, LAB, f"cluster.spare_nodes={spare}"]) == ExitStatus.COMPLETE
        err = capsys.readouterr().err
        assert err.startswith(told)
        assert bool(err) == bool(told)
    assert set_up([TINY]) == ExitStatus.COMPLETE
    assert capsys.readouterr().err == ""
