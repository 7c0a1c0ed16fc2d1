"""The exported folder in MLflow, loaded in a process that has none of our code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.evaluate.generate import decode_greedily
from wrinklefree.export.hf import export_hf
from wrinklefree.export.settings import ExportSettings
from wrinklefree.export.student import load_student
from wrinklefree.models.folder import save_model
from wrinklefree.models.transforms import ternary
from wrinklefree.tokens.tokenizer import load_tokenizer
from wrinklefree.tracking.artifact import Origin, open_artifact, writing_artifact
from wrinklefree.tracking.pipeline import VARIABLE
from wrinklefree.tracking.runs import StageRun

pytestmark = pytest.mark.filterwarnings("ignore")  # mlflow and torch warn about themselves
PROMPTS = ["the population of", "the city is a"]
NEW_TOKENS = 8

ELSEWHERE = f"""
import json, sys
import mlflow
version = mlflow.register_model(sys.argv[1], "student")
uri = f"models:/student/{{version.version}}"
texts = mlflow.pyfunc.load_model(uri).predict({PROMPTS}, params={{"max_new_tokens": {NEW_TOKENS}}})
pipeline = mlflow.transformers.load_model(uri)
ids = pipeline({PROMPTS}, max_new_tokens={NEW_TOKENS}, return_tensors=True)
assert "wrinklefree" not in sys.modules
tokens = [one[0]["generated_token_ids"] for one in ids]
print(json.dumps([version.source, texts, tokens]))
"""


SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def test_the_registry_takes_the_export_and_loads_our_greedy_tokens_without_our_code(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(VARIABLE, "test-pipeline")
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    ternary().apply(model)
    save_model(tmp_path / "student", model, ternary(), tokenizer)
    student, place = load_student(tmp_path / "student"), Path("models/export")
    with writing_artifact(place, Origin("export", {}, {})) as (folder, _):
        export_hf(ExportSettings(), student, folder, tokens_BT=torch.randint(1, 300, (2, 20)))
    run = StageRun("export", Path("work/export"))
    run.log_output(open_artifact(place))
    run.finish("FINISHED")
    source, texts, tokens = elsewhere(f"runs:/{run.id}/models/export")
    logged = Path(source.removeprefix("file://"))
    weights = "model.safetensors"
    assert (logged / weights).read_bytes() == (place / weights).read_bytes()
    open_artifact(place)  # as it was: MLflow wrote nothing into it
    words = load_tokenizer(student.folder)
    for prompt, text, found in zip(PROMPTS, texts, tokens, strict=True):
        ids = words.encode(prompt, add_special_tokens=False).ids
        ours = decode_greedily(student.model, ids, new_tokens=NEW_TOKENS, end_of_text_id=0)
        assert found == ids + ours
        assert text == words.decode(ids + ours)


def elsewhere(uri: str) -> tuple[str, list[str], list[list[int]]]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Stock ternary layers are compiled when they first run, which takes longer than all else here.
    environment |= {"TORCHDYNAMO_DISABLE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-P", "-c", ELSEWHERE, uri]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    source, texts, tokens = json.loads(done.stdout.splitlines()[-1])
    return source, texts, tokens
