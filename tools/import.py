"""`python -m tools.import FOLDER OUT`: a folder of transformers as a checkpoint of ours.

What `tools.export` wrote becomes the checkpoint that it was. A model of the Llama, Qwen2, Mistral
or GPT-2 class becomes a checkpoint whose decoder others begin from, one of the BERT, RoBERTa or
ELECTRA class one whose text encoder they do, one of the ViT, CLIP, SigLIP or BEiT class one whose
image encoder they do, one of the wav2vec 2.0, HuBERT or Whisper class one whose audio encoder they
do, one of the VideoMAE or TimeSformer class one whose video encoder they do: `python -m train
OUT/model.yaml MINE.yaml`.
"""

import sys

from tools.arguments import Parser, local_path, whole
from tools.command import command_line
from tools.hub.folder import CONFIG, MODEL_TYPE, read_folder, read_json
from tools.hub.foreign import PART, read_foreign
from train.storage.place import Place


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Write OUT; print what reads it."""
    parser = Parser(prog="python -m tools.import", description=__doc__)
    parser.add_argument("folder", type=local_path, help="what transformers or tools.export wrote")
    parser.add_argument("out", help="directory to create")
    parser.add_argument(
        "--start-token",
        type=whole(most=2**24 - 1),
        help="of a text encoder; default: [CLS] or <s> of its tokenizer",
    )
    options = parser.parse_args(arguments)
    out = Place.parse(options.out)
    if read_json(options.folder / CONFIG).get("model_type") == MODEL_TYPE:
        sys.stdout.write(f"{read_folder(options.folder, out)}: a checkpoint as any other\n")
        return
    place, taken = read_foreign(options.folder, out, start_token=options.start_token)
    if taken.left_out:
        named = ", ".join(taken.left_out)
        what = taken.part if taken.part == "decoder" else f"{taken.part} encoder"
        sys.stdout.write(f"of the {what} are not, and were left out: {named}\n")
    for note in taken.notes:
        sys.stdout.write(f"{note}\n")
    sys.stdout.write(f"{place}: python -m train {place}/{PART} MINE.yaml\n")


if __name__ == "__main__":
    sys.exit(main())
