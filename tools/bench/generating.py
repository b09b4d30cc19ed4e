"""Generation with a cache, greedy, beside `generate` of transformers on our own exported model."""

from functools import partial
from typing import Any

import torch

from model.generation.decoding import Request, generate
from model.semicausal import SemiCausal
from tools.bench.exported import exported
from tools.bench.rounds import Contestant, Effort, Findings
from tools.bench.shapes import Plan
from tools.bench.training import build, num_parameters

BATCHES = (1, 8)


def against_transformers(plan: Plan) -> Findings:
    """Prompts of equal length, which need no padding: the peer at its best.

    Raises:
        AssertionError: the two did not say the same.
    """
    shape = plan.ranks
    prompt_tokens, new_tokens = shape.sequence_tokens // 8, shape.sequence_tokens // 4
    findings = Findings(
        settings=shape.settings | {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    )
    ours: SemiCausal = build(shape.semi_causal()).eval()
    with exported(ours, sequence_tokens=shape.sequence_tokens) as files:
        peer: Any = files.peer().eval()
    for batch in BATCHES:
        generator = torch.Generator().manual_seed(batch)
        size = (batch, prompt_tokens)
        prompts = torch.randint(4, shape.vocabulary, size, generator=generator)
        steps: dict[str, Any] = {
            "semicausal": partial(
                generate,
                ours,
                prompts.tolist(),
                [Request(max_new_tokens=new_tokens)] * batch,
                most_slots=shape.sequence_tokens,
                device=prompts.device,
            ),
            "transformers": partial(
                peer.generate,
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            ),
        }
        said = [row.ids for row in steps["semicausal"]()]
        assert said == steps["transformers"]()[:, prompt_tokens:].tolist()
        contestants = [
            Contestant(
                name=f"{name}, batch {batch}",
                step=step,
                tokens=batch * new_tokens,
                parameters=num_parameters(ours),
                precision="fp32",
            )
            for name, step in steps.items()
        ]
        findings.compare(
            contestants,
            Effort(rounds=plan.heavy.rounds, warmup_steps=plan.heavy.warmup_steps),
            {
                f"generate_batch{batch}_vs_transformers": (
                    f"transformers, batch {batch}",
                    f"semicausal, batch {batch}",
                )
            },
        )
    return findings
