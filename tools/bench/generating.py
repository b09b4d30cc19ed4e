"""Generation with a cache, greedy, beside transformers' `generate` on a GPT-2 of equal shape."""

from functools import partial
from typing import Any

import torch

from model.generation.decoding import Request, generate
from model.layers import initialize
from model.semicausal import SemiCausal
from tools.bench import peers
from tools.bench.rounds import Contestant, Effort, Findings
from tools.bench.shapes import Plan
from tools.bench.training import num_parameters

BATCHES = (1, 8)


def against_transformers(plan: Plan) -> Findings:
    """Prompts of equal length, which need no padding: the peer at its best."""
    shape = plan.peers
    prompt_tokens, new_tokens = shape.sequence_tokens // 4, shape.sequence_tokens // 2
    findings = Findings(
        settings=shape.settings | {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    )
    config = shape.causal()
    ours = SemiCausal(config)
    initialize(ours, seed=1)
    ours.eval()
    peer: Any = peers.matched(peers.PEERS["gpt2"], shape, parameters=num_parameters(ours)).eval()
    request = Request(max_new_tokens=new_tokens)
    for batch in BATCHES:
        generator = torch.Generator().manual_seed(batch)
        size = (batch, prompt_tokens)
        prompts = torch.randint(4, shape.vocabulary, size, generator=generator)
        steps = {
            "semicausal": partial(
                generate,
                ours,
                prompts.tolist(),
                [request] * batch,
                most_slots=config.decoder.max_tokens,
                device=prompts.device,
            ),
            "gpt2": partial(
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
        contestants = [
            Contestant(
                name=f"{name}, batch {batch}",
                step=step,
                tokens=batch * new_tokens,
                parameters=num_parameters(ours if name == "semicausal" else peer),
                precision="fp32",
            )
            for name, step in steps.items()
        ]
        findings.compare(
            contestants,
            Effort(rounds=plan.heavy.rounds, warmup_steps=plan.heavy.warmup_steps),
            {
                f"generate_batch{batch}_vs_transformers": (
                    f"gpt2, batch {batch}",
                    f"semicausal, batch {batch}",
                )
            },
        )
    return findings
