"""The ``README.md`` of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from wrinklefree.evaluate.scores import ModelScore, Score
from wrinklefree.tracking.artifact import read_manifest

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- bitnet
- 1.58-bit
---

# A 1.58-bit language model

Weights of all linear layers in the decoder are -1, 0 or 1 times one scale per matrix, four weights
in a byte; activations are 8-bit integers per token (BitNet b1.58, arXiv 2402.17764).{norms}
Embeddings, norms and head are float32.{precision}

| | |
|---|---|
| parameters | {parameters:,}, of which {ternary_parameters:,} ternary |
| layers, hidden size | {layers}, {hidden} |
| vocabulary | {vocabulary:,} |
| size | {exported_bytes:,} bytes, as float32 {float32_bytes:,} |
| class, linear class | `{architecture}`, `{linear_class}` |

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

Needs `transformers` 5 and `accelerate`. The ternary layers of transformers are compiled when they
first run, which needs a C compiler. Without one, switch the compiler off before the first call:

```python
import torch

torch.compiler.set_stance("force_eager")
```

or set the environment variable `TORCHDYNAMO_DISABLE=1` before Python starts.

## Checked when it was written

Loaded by transformers and compared with the model it was exported from: each layer on the same
input within {layer:.2g} of what it adds, logits within {relative:.2g} of their size (RMS; the
model's own answer to rounding noise is {sensitivity:.2g}), {greedy} greedy tokens compared, of
which {ties} rows part at a tie.
The weights here are the codes. Quantizing this model again, or converting it by a tool that does,
changes its scales.
"""

NORMS = """
There are norms before the output projections (arXiv 2510.13998)."""

PRECISION = """
Load it in float32 or bfloat16: some of its gains are too small for float16."""


GGUF = """
## In llama.cpp

| file | bytes | logits against ours | KL, nats | same likeliest token |
|---|---|---|---|---|
{rows}

`llama-cli -m {first}`. Checked with llama.cpp when it was written: every tensor was read back, of
{texts} texts all were split alike, and logits of a float32 file were within {exact:.2g} of those of
this model with activations in floats. llama.cpp quantizes activations in blocks, as in the table.
"""


DEQUANTIZED = """
## Without ternary layers

`dequantized/` is the same model for tools that know no ternary layers, {bytes:,} bytes: every code
times its scale in bfloat16, to which all other weights are rounded as well, and nothing quantizes
activations. In bfloat16 its logits are within {relative_difference:.2g} of those of the ternary
model (RMS), the KL divergence is {kl:.2g} nats and the likeliest token the same at
{same_choices:.1%} of positions. In float32 its layers are within {layer:.2g} of what ours give with
these weights.
"""


LOSSES = """
## How well it predicts text

Nats per token, ± the standard error over documents, on text that no training of its run has seen;
of the mixture: the mean over domains by their weights, {bits} bits per byte.

| domain | documents | loss |
|---|---|---|
{rows}
"""


DATA = """
## What it was trained on

Its last training, stage `{stage}`, read {tokens:,} tokens in rows of {length:,}, of these sources:

| source | domain, share of the tokens | documents | licence |
|---|---|---|---|
{rows}

What it was before that training, a model from elsewhere or one from scratch, is in its lineage.
The settings of that training:

```yaml
{settings}```

## What it is not good for

Text of other kinds than these: nothing else was trained or measured. It follows no instructions
that its base did not follow, and nobody has looked for bias or harm in what it writes. Some
licences ask for something of those who pass on what was made of the text: read the ones above.
"""


def add_data_to_card(folder: Path, model: Path, mixture: Path) -> None:
    """Say in ``README.md`` of the folder what the model was trained on, from the manifests."""
    trained, read = read_manifest(model), read_manifest(mixture)
    weights = trained.facts["weight_changes"][-1]["weights"]
    sources = read.settings["sources"]
    rows = [
        f"| {name} | {domain}, {weights[domain]:.1%} | {documents['train']:,}"
        f" | {sources[name]['licence']} |"
        for domain, counted in read.facts["domains"].items()
        for name, documents in counted["sources"].items()
    ]
    text = DATA.format(
        stage=trained.stage,
        tokens=trained.facts["tokens"],
        length=read.settings["mixture"]["sequence_length"],
        rows="\n".join(rows),
        settings=yaml.safe_dump(trained.settings, sort_keys=False),
    )
    _append(folder, text)


def add_losses_to_card(folder: Path, score: ModelScore) -> None:
    """Say in ``README.md`` of the folder what the held-out losses of the model are."""

    def loss(of: Score) -> str:
        error = of.loss_standard_error
        return f"{of.loss:.3f}" + (f" ± {error:.3f}" if error is not None else "")

    rows = [
        f"| {name} | {domain.documents:,} | {loss(domain.score)} |"
        for name, domain in score.domains.items()
    ]
    documents = sum(domain.documents for domain in score.domains.values())
    rows.append(f"| the mixture | {documents:,} | {loss(score.overall)} |")
    bits = score.overall.bits_per_byte
    text = LOSSES.format(bits="no" if bits is None else f"{bits:.3f}", rows="\n".join(rows))
    _append(folder, text)


def add_gguf_to_card(folder: Path, facts: dict[str, Any]) -> None:
    """Say in ``README.md`` of the folder what its GGUF files are, from the facts of the export."""
    files = {f"model-{name}.gguf": one for name, one in facts.items() if isinstance(one, dict)}
    rows = [
        f"| `{name}` | {one['bytes']:,} | {one['relative_difference']:.2g} | {one['kl']:.2g}"
        f" | {one['same_choices']:.1%} |"
        for name, one in files.items()
    ]
    text = GGUF.format(
        rows="\n".join(rows),
        first=next(iter(files)),
        texts=facts["texts"],
        exact=facts["float32_relative_difference"],
    )
    _append(folder, text)


def add_dequantized_to_card(folder: Path, facts: dict[str, Any]) -> None:
    """Say in ``README.md`` of the folder what ``dequantized`` in it is, from its facts."""
    layer = facts["gate"]["layer_relative_difference"]
    _append(folder, DEQUANTIZED.format(layer=layer, **facts))


def write_model_card(folder: Path, config: PreTrainedConfig, facts: dict[str, Any]) -> None:
    """Write ``README.md`` from the model's configuration and the facts of its export."""
    gate, subln = facts["gate"], facts["subln"]
    in_layers = subln and facts["architecture"] != "BitNetForCausalLM"
    text = CARD.format(
        parameters=facts["parameters"],
        ternary_parameters=facts["ternary_parameters"],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        exported_bytes=facts["exported_bytes"],
        float32_bytes=facts["float32_bytes"],
        architecture=facts["architecture"],
        norms=NORMS if subln else "",
        precision=PRECISION if in_layers else "",
        linear_class=facts["linear_class"],
        layer=gate["layer_relative_difference"],
        sensitivity=gate["logits_relative_sensitivity"],
        relative=gate["logits_relative_difference"],
        greedy=gate["greedy_tokens"],
        ties=gate["greedy_ties"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _append(folder: Path, text: str) -> None:
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(text)
