"""The ``README.md`` of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from wrinklefree.downloads.settings import (
    BaseSource,
    FolderBaseSettings,
    GgufBaseSettings,
    HubBaseSettings,
    ScratchBaseSettings,
)
from wrinklefree.evaluate.scores import ModelScore, Score
from wrinklefree.export.settings import I2_S_FILE
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

In transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

As a server of MLflow:

```sh
mlflow models serve -m path/of/this/folder --env-manager local --port 5001
```

```sh
curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
  -d '{{"inputs": ["Once upon a time"], "params": {{"max_new_tokens": 32}}}}'
```

Both need `transformers` 5 and `accelerate`, the server `mlflow`. The ternary layers of transformers
are compiled when they first run, which needs a C compiler. Without one, set the environment
variable `TORCHDYNAMO_DISABLE=1` before Python starts, or switch the compiler off before the first
call:

```python
import torch

torch.compiler.set_stance("force_eager")
```

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

All programs of llama.cpp take these files by `-m`; so does its server in Python (`pip install
xllamacpp`):

```python
from xllamacpp import CommonParams, Server

parameters = CommonParams()
parameters.model.path = "path/of/this/folder/{first}"
server = Server(parameters)
answer = server.handle_completions(
    {{"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}}
)
print(answer["choices"][0]["text"])
```

Checked with llama.cpp when it was written: every tensor was read back, of {texts} texts all were
split alike, logits of a float32 file were within {exact:.2g} of those of this model with
activations in floats, and tokens were chosen one by one as this model would, but where two are
nearly as likely. llama.cpp quantizes activations in blocks, as in the table.
"""

I2_S = f"""
## In bitnet.cpp

`{I2_S_FILE}`, {{bytes:,}} bytes, has the matrices in its type I2_S, as it reads them on x86 and not
on ARM. Read back, every code and scale is that of this model. It was not run: no package has
bitnet.cpp.
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

Nats per token, ± the standard error over documents, on text that no training of its run has seen:
at most {rows_per_domain} rows of each domain, spread over all that were held out, where the tables
of its run are of `evaluate.rows_per_domain`. Of the mixture: the mean over domains by their
weights, {bits} bits per byte.

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

{origin}
The settings of that training:

```yaml
{settings}```

## What it is not good for

Text of other kinds than these: nothing else was trained or measured. It follows no instructions
that its base did not follow, and nobody has looked for bias or harm in what it writes. Some
licences ask for something of those who pass on what was made of the text: read the ones above.
"""


def add_data_to_card(
    folder: Path, model: Path, mixture: Path, base: BaseSource, licence: str | None = None
) -> None:
    """Say in ``README.md`` of the folder what the model was trained on, from the manifests, and
    what dense model it was made of, of what ``licence``; None: not known."""
    trained, read = read_manifest(model), read_manifest(mixture)
    tokens = {
        domain: trained.facts["epochs"][domain] * counted["train"]["tokens"]
        for domain, counted in read.facts["domains"].items()
    }
    sources = read.settings["sources"]
    rows, hub = [], []
    for domain, counted in read.facts["domains"].items():
        for name, documents in counted["sources"].items():
            source, share = sources[name], tokens[domain] / sum(tokens.values())
            rows.append(
                f"| {name} | {domain}, {share:.1%} | {documents['train']:,} | {source['licence']} |"
            )
            if source["kind"] == "hub" and not Path(source["dataset"]).is_dir():
                hub.append(source["dataset"])
    _add_to_header(folder, base, sorted(set(hub)))
    text = DATA.format(
        stage=trained.stage,
        tokens=trained.facts["tokens"],
        length=read.settings["mixture"]["sequence_length"],
        rows="\n".join(rows),
        origin=_origin(base, licence),
        settings=yaml.safe_dump(trained.settings, sort_keys=False),
    )
    _append(folder, text)


def _add_to_header(folder: Path, base: BaseSource, datasets: list[str]) -> None:
    """Name in the header of ``README.md`` what of the hub the model was made of."""
    named: dict[str, Any] = {"datasets": datasets} if datasets else {}
    if isinstance(base, HubBaseSettings):
        named |= {"base_model": base.repository, "base_model_relation": "quantized"}
    if named:
        card = folder / "README.md"
        _, header, text = card.read_text(encoding="utf-8").split("---\n", 2)
        card.write_text(f"---\n{header}{yaml.safe_dump(named)}---\n{text}", encoding="utf-8")


def _origin(base: BaseSource, licence: str | None) -> str:
    """A sentence on the dense model that it began as."""
    match base:
        case ScratchBaseSettings():
            return "The dense model that it was made of was trained from scratch in the same run."
        case HubBaseSettings():
            name = f"`{base.repository}` of the Hugging Face hub, commit `{base.revision}`"
        case GgufBaseSettings():
            name = f"`{base.member}` of package {base.package} {base.version}"
        case FolderBaseSettings():
            name = f"one in a folder whose files have the sha256 `{base.sha256}`"
    return (
        f"The dense model that it was made of is {name}. Its licence"
        f" {f'is {licence}' if licence else 'is not known here (export.base_licence)'}; what that"
        " asks for holds for what is made of it."
    )


def add_losses_to_card(folder: Path, score: ModelScore, rows_per_domain: int) -> None:
    """Say in ``README.md`` of the folder what the held-out losses of the model are, measured on at
    most ``rows_per_domain`` rows of each domain."""

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
    text = LOSSES.format(
        bits="no" if bits is None else f"{bits:.3f}",
        rows="\n".join(rows),
        rows_per_domain=rows_per_domain,
    )
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


def add_i2_s_to_card(folder: Path, size: int) -> None:
    """Say in ``README.md`` of the folder what its file for bitnet.cpp is, of ``size`` bytes."""
    _append(folder, I2_S.format(bytes=size))


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
