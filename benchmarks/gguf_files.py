"""Sizes of GGUF files of a student, their speed in llama.cpp, and its folders' in transformers.

The same ternary weights are written in F16 and Q8_0, as a dense model would be, and in the blocks
that ``export`` writes; norms are float32 and the embedding F16 in all. Stock transformers loads
what ``export`` writes for it, with ternary layers and, where its class has a place for all, in
plain bfloat16; ternary layers are compiled, which needs a C compiler. Needs ``models/distill/ar``,
or another model folder::

    python benchmarks/gguf_files.py --model models/distill/ar
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from _timing import ROOT, print_header, print_table, require_close, time_in_turns
from transformers import AutoModelForCausalLM

from wrinklefree.export.blocks import BlockType
from wrinklefree.export.dequantized import export_dequantized
from wrinklefree.export.gguf import write_gguf
from wrinklefree.export.hf import export_hf
from wrinklefree.export.llama_cpp import opened
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import Student, load_student

TYPES = ("F16", "Q8_0", "Q4_0", "Q2_0", "TQ2_0", "TQ1_0")
PROMPT = "The history of the city begins with"
NEW_TOKENS, PROMPT_TOKENS = 32, 256


def in_transformers(student: Student, folder: Path, prompt: list[int]) -> dict[str, Any]:
    """The student's folders, written and checked as by ``export``, as stock transformers loads
    them."""
    settings, tokens_BT = ExportSettings(dequantized=True), torch.tensor([prompt])
    for write in (export_hf, export_dequantized):
        write(settings, student, folder, tokens_BT=tokens_BT)
    folders = {"transformers, ternary": folder, "transformers, bfloat16": folder / "dequantized"}
    return {
        name: AutoModelForCausalLM.from_pretrained(path).eval()
        for name, path in folders.items()
        if (path / "config.json").is_file()
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "distill" / "ar")
    parser.add_argument("--repeats", type=int, default=7, help="turns that are timed")
    arguments = parser.parse_args()
    print_header("GGUF files in llama.cpp")
    if not (arguments.model / "model.safetensors").is_file():
        print(f"{arguments.model} is missing, nothing timed; make it with: snakemake")
        return
    student = load_student(arguments.model)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = {name: Path(folder) / f"{name}.gguf" for name in TYPES}
        for name, path in files.items():
            matrices = write_gguf(path, student, BlockType[name], BlockType.F16)
            size, of_f16 = path.stat().st_size, path.stat().st_size / files["F16"].stat().st_size
            print(f"{name:<8}{size:>14,} bytes, {of_f16:.3f} of F16's; matrices: {matrices}")
        theirs = {name: stack.enter_context(opened(path)) for name, path in files.items()}
        prompt = (theirs["F16"].tokens(PROMPT) * PROMPT_TOKENS)[:PROMPT_TOKENS]
        wanted = torch.from_numpy(theirs["F16"].logits(prompt))
        stock = in_transformers(student, Path(folder), prompt)
        prompt_BT = torch.tensor([prompt])
        begun_BT = torch.tensor([theirs["F16"].tokens(PROMPT)])
        for name, one in stock.items():
            logits_TV = one(prompt_BT).logits[0].float()
            require_close(logits_TV, wanted, 0.1, f"{name}: F16's logits")
        for name, one in theirs.items():
            require_close(
                torch.from_numpy(one.logits(prompt)), wanted, 0.1, f"{name}: F16's logits"
            )
        seconds = time_in_turns(
            {name: lambda one=one: one.logits(prompt, last=True) for name, one in theirs.items()}
            | {n: lambda one=one: one(prompt_BT, logits_to_keep=1) for n, one in stock.items()},
            arguments.repeats,
        )
        print_table(f"a prompt of {PROMPT_TOKENS} tokens", seconds, ["F16"], PROMPT_TOKENS)
        seconds = time_in_turns(
            {
                name: lambda one=one: list(one.generate(PROMPT, NEW_TOKENS))
                for name, one in theirs.items()
            }
            | {
                name: lambda one=one: one.generate(
                    begun_BT, max_new_tokens=NEW_TOKENS, do_sample=False
                )
                for name, one in stock.items()
            },
            arguments.repeats,
        )
        print_table(f"{NEW_TOKENS} tokens after a short one", seconds, ["F16"], NEW_TOKENS)


if __name__ == "__main__":
    main()
