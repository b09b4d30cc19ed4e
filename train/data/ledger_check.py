"""Holds a run's ledger against its plan: every global batch once, in order, as mixed as asked."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from train.data.ledger import Record, Start, digest_of
from train.data.plan import StepPlan, identities

SHOWN = 20
"""Faults that are told one by one."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one source gave.

    Attributes:
        name: of the source.
        entries: that it gave, each as often as a step holds it.
        due: entries that its weights, epochs or tokens add up to.
    """

    name: str
    entries: int
    due: float


@dataclass(kw_only=True)
class Findings:
    """What the check found.

    Attributes:
        steps: global batches of the history that counts.
        entries: in them.
        left_out: steps that were left out, as the run says.
        begun: steps made before the first start, by a run whose ledger lies in another directory.
        starts: data ranks at each start.
        steps_again: steps that were made, rolled back with a crash, and made again.
        entries_lost: entries that no rank read, or that were read otherwise than planned.
        entries_repeated: entries that were read twice in one step.
        shares: by source.
        faults: in words; empty if all is well.
    """

    steps: int = 0
    entries: int = 0
    left_out: list[int] = field(default_factory=list)
    begun: int = 0
    starts: list[int] = field(default_factory=list)
    steps_again: int = 0
    entries_lost: int = 0
    entries_repeated: int = 0
    shares: list[Share] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


Ledger = dict[int, dict[int, tuple[Start, list[Record]]]]


def check(
    ledger: Ledger,
    plan: StepPlan,
    *,
    saved_step: int,
    left_out: Collection[int] = (),
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Findings:
    """Compare all that counts with the plan.

    Args:
        ledger: as `read_ledger` gives it.
        plan: of the run.
        saved_step: step of the newest checkpoint, up to which the history must be whole.
        left_out: steps that the run says it leaves out.
        watch: passes steps on, and may show how far they are.
    """
    findings = Findings()
    made = history(ledger, findings, entries=plan.entries, steps=plan.mixture.steps)
    last = max(made, default=findings.begun)
    if last < saved_step:
        findings.faults.append(
            f"the newest checkpoint is of step {saved_step}, but the ledger ends at step {last}"
        )
        findings.entries_lost += (saved_step - last) * plan.entries
    for step in watch(range(findings.begun + 1, last + 1)):
        records = made.get(step)
        if records is None:
            findings.faults.append(f"step {step} was left out")
            findings.entries_lost += plan.entries
            continue
        read = [record for record in records if not record.is_left_out]
        if len(read) < len(records):
            findings.left_out.append(step)
            if step not in left_out and step <= saved_step:
                findings.faults.append(f"step {step} was left out, and the run does not say why")
                findings.entries_lost += plan.entries
            if read:
                _compare(step, read, plan, findings)
            continue
        if step in left_out and step <= saved_step:
            findings.faults.append(f"step {step} was made, and the run says that it is left out")
        findings.steps += 1
        findings.entries += sum(record.entries for record in records)
        _compare(step, records, plan, findings)
    mixture, begun = plan.mixture, findings.begun
    given, due = mixture.given(last) - mixture.given(begun), mixture.due(last) - mixture.due(begun)
    for source, entries, owed in zip(plan.sources.all, given.tolist(), due.tolist(), strict=True):
        times = plan.choices
        findings.shares.append(Share(name=source.name, entries=entries * times, due=owed * times))
    return findings


def history(
    ledger: Ledger, findings: Findings, *, entries: int, steps: int
) -> dict[int, list[Record]]:
    """Of each step the records that count: those of the last start that made it.

    Args:
        ledger: as `read_ledger` gives it.
        findings: told what does not fit.
        entries: of a global batch.
        steps: of the run.
    """
    counted: dict[int, list[Record]] = {}
    for place, number in enumerate(sorted(ledger), start=1):
        ranks = ledger[number]
        starts = [start for start, _ in ranks.values() if start.ranks]
        if not starts:
            continue  # killed before a rank had written its first line
        first, size = starts[0].first_step, starts[0].ranks
        if any((start.first_step, start.ranks) != (first, size) for start in starts):
            findings.faults.append(f"start {number}: its ranks do not agree on where it began")
        if any(start.entries != entries for start in starts):
            findings.faults.append(
                f"start {number} had another global batch than {entries} entries"
            )
        if first > steps:
            findings.faults.append(f"start {number} began at step {first}, but the run has {steps}")
            continue
        is_first = not findings.starts and place == number  # and none before it is missing
        findings.begun = first if is_first else min(findings.begun, first)
        findings.starts.append(size)
        by_step: dict[int, list[Record]] = {}
        for _, records in ranks.values():
            for record in records:
                if record.step > steps:
                    findings.faults.append(
                        f"start {number} made step {record.step}, but the run has {steps}"
                    )
                    continue
                by_step.setdefault(record.step, []).append(record)
        # A step that not all ranks finished was not made; it can only be the last one.
        made = {
            step
            for step, records in by_step.items()
            if max(Counter(record.is_left_out for record in records).values()) >= size
        }
        reached = max(counted, default=findings.begun)
        if first > reached:
            findings.faults.append(
                f"start {number} goes on from step {first}, but only {reached} were made before"
            )
        for step in [step for step in counted if step > first]:
            del counted[step]
            findings.steps_again += 1
        end = max(made, default=first)
        for step in range(first + 1, end + 1):
            if step in by_step:
                counted[step] = by_step[step]
        for step in by_step:
            if step <= first:
                findings.faults.append(f"start {number} made step {step} before where it began")
    return counted


def _compare(step: int, records: list[Record], plan: StepPlan, findings: Findings) -> None:
    at = 0
    for record in sorted(records, key=lambda record: record.first):
        stop = record.first + record.entries
        if record.first > at:
            findings.faults.append(f"step {step}: entries {at} to {record.first - 1} were not read")
            findings.entries_lost += record.first - at
        if record.first < at:
            twice = min(at, stop) - record.first
            findings.faults.append(f"step {step}: {twice} entries were read twice")
            findings.entries_repeated += twice
        at = max(at, stop)
        planned = identities(plan.step(step, first=record.first, stop=min(stop, plan.entries)))
        listed = record.identities
        if listed is not None and digest_of(listed) != record.digest:
            findings.faults.append(f"step {step}: a list and its digest do not agree")
        if record.digest != digest_of(planned):
            findings.faults.append(
                f"step {step}: entries {record.first} to {stop - 1} were not read as planned"
                + _difference(listed, planned)
            )
            findings.entries_lost += record.entries
    if at < plan.entries:
        findings.faults.append(f"step {step}: entries {at} to {plan.entries - 1} were not read")
        findings.entries_lost += plan.entries - at


def _difference(listed: np.ndarray | None, planned: np.ndarray) -> str:
    if listed is None:
        return ""
    for read, wanted in zip(listed.tolist(), planned.tolist(), strict=False):
        if read != wanted:
            return f": entry {read[0]} read {read[1:]}, planned {wanted[1:]}"
    return f": {len(listed)} parts, planned {len(planned)}"
