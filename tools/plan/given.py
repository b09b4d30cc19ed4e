"""Whether the layout that a configuration gives fits its ranks: what `tools.submit` asks."""

from dataclasses import replace

from tools.plan.documents import document_tokens
from tools.plan.machines import Machine
from tools.plan.search import Plan, one_plan, too_large_words, with_best_split
from tools.plan.task import Candidate, task_of
from train.config import RunConfig, batch_fault


def given_plan(config: RunConfig, machine: Machine, *, ranks: int) -> Plan:
    """What the layout of a configuration takes, the smallest microbatch where it is `auto`.

    Args:
        config: the run, whose layout so many ranks can have.
        machine: what they are.
        ranks: of all nodes.

    Raises:
        ConfigError: the planner knows nothing of such runs.
    """
    assert batch_fault(config, ranks=ranks) is None, "seen to before"
    task = task_of(config, kind=machine.kind, document_tokens=document_tokens(config))
    data = ranks // config.layout.model_ranks
    micro = config.batch.micro_sequences
    micro_sequences = 1 if micro == "auto" else micro
    candidate = Candidate(
        layout=config.layout,
        data=data,
        stage=config.zero.stage,
        micro_sequences=micro_sequences,
        num_microbatches=config.batch.sequences // data // micro_sequences,
    )
    if config.layout.split is None:
        whole = [config.model.decoder.num_layers]
        if config.layout.pipeline * config.layout.chunks == 1:
            candidate = replace(candidate, layout=config.layout.model_copy(update={"split": whole}))
        else:
            candidate = with_best_split(task, candidate, machine)
    return one_plan(task, candidate, machine)


def memory_fault(plan: Plan, machine: Machine) -> str | None:
    """That a plan's fullest rank has no room; None if it has."""
    part = plan.moments.too_large(machine.usable_bytes)
    needed = plan.memory.total
    return None if part is None else too_large_words(needed, needed, machine, part=part)
