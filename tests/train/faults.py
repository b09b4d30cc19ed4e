"""What training does when its data fail: each case runs the tiny run on two ranks, for real.

`python -m tests.train.faults` (or `make faults-data`) writes out/faults-data.json, a list of
`{case, outcome, expected, seconds, samples_lost, samples_repeated}`. Needs root, nginx and weed.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model import torchvision_free

torchvision_free.install()

from tests.train import fault_plays as plays  # noqa: E402  # after install()
from tests.train.fault_lab import DOCUMENTS, Lab, Played, losses_of  # noqa: E402
from tests.train.fault_plays import FREEZE_SECONDS, flip, victim  # noqa: E402
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line  # noqa: E402
from tools.ledger import check_run  # noqa: E402
from train.errors import DataError  # noqa: E402

GOES_ON = "ends with the losses of an undisturbed run"
STOPS = "stops, and every rank says why"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    case: str
    outcome: str
    expected: str
    seconds: float
    samples_lost: int
    samples_repeated: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and what must come of it.

    Attributes:
        name: of the case.
        play: makes the fault and runs.
        expected: `GOES_ON` or `STOPS`.
        says: pattern in the output: of every rank where it stops, of any where it goes on.
        within_seconds: from the fault, or the start where it comes before, to the end.
    """

    name: str
    play: Callable[["Lab", Path], "Played"]
    expected: str
    says: str | None
    within_seconds: float


def judge(case: Case, lab: Lab, played: Played) -> Result:
    """What came of a case, in words that equal what was expected if all is well."""
    lost, repeated = ledger_of(lab, played)
    outcome = "; ".join([_outcome(case, lab, played), *played.wrong])
    return Result(
        case=case.name,
        outcome=outcome,
        expected=case.expected,
        seconds=round(played.seconds, 1),
        samples_lost=lost,
        samples_repeated=repeated,
    )


def _outcome(case: Case, lab: Lab, played: Played) -> str:
    said = [case.says is None or re.search(case.says, text) is not None for text in played.outputs]
    if all(code == 0 for code in played.codes):
        if losses_of(played.directory) != lab.losses(played.corpus):
            return "ends with other losses"
        return GOES_ON if any(said) else f"ends in silence: {played.outputs}"
    if all(code == 2 for code in played.codes) and all(said):
        return STOPS
    return f"exit status {played.codes}: {[text[-1500:] for text in played.outputs]}"


def ledger_of(lab: Lab, played: Played) -> tuple[int, int]:
    """Samples lost and repeated, by the run's own ledger."""
    os.environ.update(played.environment)
    try:
        findings = check_run(played.directory, corpus=str(played.corpus or lab.corpus))
    except DataError as error:
        # It stopped before its first step.
        if "no ledger" not in str(error) and "no run directory" not in str(error):
            raise
        return 0, 0
    return findings.entries_lost, findings.entries_repeated


def _shard(content: dict[str, Any]) -> dict[str, Any]:
    return content["shards"][30]


CASES: Sequence[Case] = (
    # These take the longest, and mostly wait: the test begins them first and collects them last.
    Case(
        name="server frozen for 60 s",
        play=plays.frozen,
        expected=GOES_ON,
        says=r"waiting for http://127.0.0.1:\d+: could not read s3://faults/.*no answer within 5 s",
        within_seconds=FREEZE_SECONDS + 45,
    ),
    Case(
        name="saving: store frozen for 60 s",
        play=plays.store_frozen_while_saving,
        expected=GOES_ON,
        says=r"waiting for http://127.0.0.1:\d+: could not \w+ s3://faults/.*no answer within 5 s",
        within_seconds=FREEZE_SECONDS + 45,
    ),
    Case(
        name="saving: store gone for good",
        play=plays.store_gone_while_saving,
        expected=STOPS,
        says=r"s3://faults/\S+ cannot be written \(Could not \w+ s3://faults/.* attempts?\b.*; the "
        r"checkpoints before it are whole",
        within_seconds=60,
    ),
    Case(
        name="saving: wrong secret",
        play=plays.wrong_secret_while_saving,
        expected=STOPS,
        says=r"refuses the credentials for s3://faults/.*the secret key does not match",
        within_seconds=30,
    ),
    Case(
        name="saving: store throttled",
        play=plays.store_throttled_while_saving,
        expected=GOES_ON,
        says=r"SlowDown.*trying again",
        within_seconds=90,
    ),
    Case(
        name="saving: disk full",
        play=plays.full_disk_while_saving,
        expected=STOPS,
        says=r"cannot be written \(No space left on device\); the checkpoints before it are whole",
        within_seconds=60,
    ),
    Case(
        name="missing shard",
        play=plays.spoiled_in_store(lambda corpus: victim(corpus).unlink()),
        expected=STOPS,
        says=r"Shard s3://faults/missing-shard/train/shard.00030.mds is missing; upload it again",
        within_seconds=40,
    ),
    Case(
        name="shard cut short in the store",
        play=plays.spoiled_in_store(lambda corpus: os.truncate(victim(corpus), 300)),
        expected=STOPS,
        says=r"shard.00030.mds has 300 bytes where the index says \d+; upload it again",
        within_seconds=40,
    ),
    Case(
        name="byte flipped in the store",
        play=plays.spoiled_in_store(lambda corpus: flip(victim(corpus))),
        expected=STOPS,
        says=r"shard.00030.mds is damaged: its xxh64 hash is not the one in the index; upload it",
        within_seconds=40,
    ),
    Case(
        name="byte flipped in the cache",
        play=plays.flipped_in_cache,
        expected=GOES_ON,
        says=r"shard.00030.mds in the data cache is damaged: its xxh64 .* and is fetched again",
        within_seconds=40,
    ),
    Case(
        name="wrong secret",
        play=plays.wrong_secret,
        expected=STOPS,
        says=r"refuses the credentials for s3://faults/.*the secret key does not match",
        within_seconds=30,
    ),
    Case(
        name="missing bucket",
        play=plays.missing_bucket,
        expected=STOPS,
        says=r"There is no bucket no-such-bucket at http://127.0.0.1:\d+; check the URL",
        within_seconds=30,
    ),
    Case(
        name="missing index",
        play=plays.spoiled_in_store(lambda corpus: (corpus / "train/index.json").unlink()),
        expected=STOPS,
        says=r"s3://faults/missing-index/train is not an MDS directory: it has no index.json",
        within_seconds=30,
    ),
    Case(
        name="server killed for good",
        play=plays.killed_for_good,
        expected=STOPS,
        says=r"Could not read s3://faults/\S+ from http://127.0.0.1:\d+: \d+ attempts?\b.*, and "
        r"nothing for [56] s .*storage.retry_budget_seconds \(5\)",
        within_seconds=20,
    ),
    Case(
        name="throttled to 1 MB/s",
        play=plays.throttled,
        expected=GOES_ON,
        says=None,
        within_seconds=60,
    ),
    Case(
        name="cache disk full",
        play=plays.full_disk,
        expected=GOES_ON,
        says=r"the disk of the data cache .* is full: files that were not used lately make room",
        within_seconds=40,
    ),
    Case(
        name="a rank killed",
        play=plays.killed_rank,
        expected=GOES_ON,
        says=None,
        within_seconds=40,
    ),
    Case(
        name="stale shared memory",
        play=plays.stale_shared_memory,
        expected=GOES_ON,
        says=None,
        within_seconds=40,
    ),
    Case(
        name="index that leaves the directory",
        play=plays.hostile(
            lambda index: _shard(index)["raw_data"].update(basename="../../../etc/passwd")
        ),
        expected=STOPS,
        says=r"the shard path '../../../etc/passwd' leaves the corpus directory",
        within_seconds=30,
    ),
    Case(
        name="index with a pickled column",
        play=plays.hostile(lambda index: _shard(index).update(column_encodings=["pkl"])),
        expected=STOPS,
        says=r"column id is pickled, and reading it could run any code",
        within_seconds=30,
    ),
    Case(
        name="fewer samples than promised",
        play=plays.hostile(
            lambda manifest: manifest.update(splits={"train": {"samples": DOCUMENTS + 1}}),
            name="manifest.json",
        ),
        expected=STOPS,
        says=rf"train lists {DOCUMENTS} samples where its manifest.json promises {DOCUMENTS + 1};",
        within_seconds=30,
    ),
    Case(
        name="more samples than promised",
        play=plays.hostile(
            lambda manifest: manifest.update(splits={"train": {"samples": DOCUMENTS - 1}}),
            name="manifest.json",
        ),
        expected=STOPS,
        says=rf"train lists {DOCUMENTS} samples where its manifest.json promises {DOCUMENTS - 1};",
        within_seconds=30,
    ),
)


NUM_SLOW = 2
"""The first cases, which mostly wait."""


def play(case: Case, lab: Lab) -> Result:
    """Play a case to its end."""
    place = lab.directory / re.sub(r"[^a-z0-9]+", "-", case.name.lower())
    return judge(case, lab, case.play(lab, place))


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Play all cases; 1 if one ends otherwise than expected."""
    parser = Parser(prog="python -m tests.train.faults", description=__doc__)
    parser.add_argument("--out", type=output_file, default="out/faults-data.json")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as directory,
        Lab(Path(directory)) as lab,
        ThreadPoolExecutor(NUM_SLOW) as background,
    ):
        lab.losses()
        slow = [background.submit(play, case, lab) for case in CASES[:NUM_SLOW]]
        quick = [play(case, lab) for case in CASES[NUM_SLOW:]]
        results = [*(each.result() for each in slow), *quick]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    for result in results:
        sys.stdout.write(f"{result.case:34} {result.seconds:6.1f} s  {result.outcome[:200]}\n")
    faults = [fault for case, result in zip(CASES, results, strict=True)
              if (fault := fault_of(case, result)) is not None]  # fmt: skip
    sys.stdout.write("\n".join(faults) + "\n" if faults else f"{len(results)} cases as expected\n")
    return int(bool(faults))


def fault_of(case: Case, result: Result) -> str | None:
    """What is wrong with a result; None if nothing is."""
    if result.outcome != case.expected:
        return f"{case.name}: {result.outcome}"
    if result.samples_lost or result.samples_repeated:
        return f"{case.name}: {result.samples_lost} lost, {result.samples_repeated} repeated"
    if result.seconds > case.within_seconds:
        return f"{case.name}: took {result.seconds:g} s, not {case.within_seconds:g}"
    return None


if __name__ == "__main__":
    sys.exit(main())
