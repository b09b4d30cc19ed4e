"""What plain transformers makes of an exported folder, in a process without this repository.

`python judge.py REQUEST.json ANSWER.safetensors`, with the Python of any environment that has
torch, transformers and, for `peft`, peft. It sees to it that it can import nothing of ours.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ours = [path for path in sys.path if (Path(path or ".") / "tools/hub").is_dir()]
sys.path = [path for path in sys.path if path not in ours]
for package in ("model", "train", "tools", "parallel"):
    assert importlib.util.find_spec(package) is None, f"{package} can be imported"

import torch  # noqa: E402  # nothing comes before the check

try:
    importlib.import_module("torchvision")
except ImportError:
    pass
except RuntimeError:  # a build for another torch, which transformers would import
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer  # noqa: E402

transformers.logging.set_verbosity_error()


def greedy(model, inputs, **options):
    """The new tokens of each row."""
    new = model.generate(**inputs, do_sample=False, **options)
    return new[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def main(request: Path, answer: Path) -> None:
    asked = json.loads(request.read_text())
    folder, prompts, most = asked["folder"], asked["prompts"], asked["max_new_tokens"]
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == "<pad>"
    # Whoever reads plain text, as lm-eval does, begins as training did.
    plain = processor("the page")["input_ids"][0].tolist()
    assert tokenizer("the page")["input_ids"] == plain, (tokenizer("the page")["input_ids"], plain)
    assert plain[0] == tokenizer.bos_token_id
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    found: dict[str, torch.Tensor] = {}
    shown: list[Any] = [[Image.open(path) for path in paths] for paths in asked["images"]]
    for number, prompt in enumerate(prompts):
        inputs = processor(prompt, images=shown[number])
        found[f"ids.{number}"] = inputs["input_ids"]
        found[f"logits.{number}"] = model(**inputs).logits
        found[f"tokens.{number}"] = greedy(model, inputs, max_new_tokens=most)
        if number == len(prompts) - 1:
            found["uncached"] = greedy(model, inputs, max_new_tokens=4, use_cache=False)
            greedy(model, inputs, max_new_tokens=4, num_beams=3)
    batch = processor(prompts, images=[image for images in shown for image in images])
    beams = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    found["beams"] = model.generate(**batch, **beams)[:, batch["input_ids"].shape[1] :]
    for number, prompt in enumerate(prompts):
        alone = processor(prompt, images=shown[number])
        new = model.generate(**alone, **beams)[:, alone["input_ids"].shape[1] :]
        assert found["beams"][number, : new.shape[1]].tolist() == new[0].tolist(), prompt
    found["batch.ids"] = batch["input_ids"]
    found["batch.logits"] = model(**batch).logits
    found["batch.tokens"] = greedy(model, batch, max_new_tokens=most)
    static = {"max_new_tokens": most, "cache_implementation": "static", "disable_compile": True}
    found["static.tokens"] = greedy(model, batch, **static)
    model.save_pretrained(asked["resaved"])
    processor.save_pretrained(asked["resaved"])
    again: Any = AutoModelForCausalLM.from_pretrained(
        asked["resaved"], trust_remote_code=True
    ).eval()
    AutoProcessor.from_pretrained(asked["resaved"], trust_remote_code=True)
    found["again.logits"] = again(**batch).logits
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    found["loss"] = model(**batch, labels=labels).loss[None]
    if asked["peft"]:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=2, target_modules=["qkv", "out", "up", "down"], init_lora_weights=False
        )
        tuned = get_peft_model(again, settings).eval()
        found["tuned.logits"] = tuned(**batch).logits
        tuned.save_pretrained(asked["resaved"] + "-adapter")
        merged: Any = tuned.merge_and_unload()
        found["merged.logits"] = merged(**batch).logits
        merged.save_pretrained(asked["resaved"] + "-merged")
        assert not any("lora" in name for name, _ in merged.named_parameters())
    refused = ""
    try:
        AutoModelForCausalLM.from_pretrained(asked["broken"], trust_remote_code=True)
    except ValueError as error:
        refused = str(error)
    save_file(
        {name: value.contiguous() for name, value in found.items()},
        answer,
        metadata={"transformers": transformers.__version__, "refused": refused},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
