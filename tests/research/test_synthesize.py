from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from wrinklefree.downloads.local_files import digest_of_files, files_of_folder, find_files
from wrinklefree.errors import UserError
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import ModelFormat
from wrinklefree.research import synthesize as room
from wrinklefree.research.synthesize import Candidate, Writer, drawn_prompts, synthesize
from wrinklefree.research.synthesize_settings import SynthesizeSettings
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter
from wrinklefree.text.documents.settings import FilesSource, HeldOutSettings
from wrinklefree.text.sources.fetch import fetch_source
from wrinklefree.tracking.stage import Stage

PROMPT, NEW = 6, 9
MakeStage = Callable[..., Stage]


def text_of(id: str) -> str:
    return f"{id[0]} text of number {id[1:]}, which goes on for a while, and then on, to its end"


@pytest.fixture
def inputs(tokenizer: Path, shape: ModelSettings, tmp_path: Path) -> dict[str, Path]:
    """A student that is surer than the teacher, and no better; two sources."""
    folders = {name: tmp_path / name for name in ("teacher", "student", "a", "b")}
    for name, scale in (("teacher", 1.0), ("student", 60.0)):
        model = build_scratch(shape, 300, 128, 0, seed=3)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(scale)
        save_model(folders[name], model, ModelFormat(), tokenizer)
    for source in "ab":
        folders[source].mkdir()
        with DocumentWriter(folders[source], source) as writer:
            for number in range(20):
                id = f"{source}{number}"
                writer.append(Document(id, text_of(id)), "train" if number else "held_out")
            writer.append(Document("short", "short"), "train")
    return folders


@pytest.fixture
def make(make_stage: MakeStage, inputs: dict[str, Path]) -> Callable[..., Stage]:
    def stage(work: Path | None = None, **changes: Any) -> Stage:
        teacher = inputs["teacher"]
        digest = digest_of_files(files_of_folder(teacher))
        settings = {
            "teacher": {"kind": "folder", "path": str(teacher), "sha256": digest},
            "documents": 10,
            "candidates": 12,
            "prompt_tokens": PROMPT,
            "new_tokens": NEW,
            "least_new_tokens": 1,
            "batch_size": 4,
        }
        found = {"student": inputs["student"]}
        found |= {f"documents.{source}": inputs[source] for source in "ab"}
        return make_stage("synthesize", None, found, {"synthesize": settings | changes}, work)

    return stage


def lines(stage: Stage, name: str = "documents.jsonl") -> list[dict[str, Any]]:
    text = (stage.folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_documents_begin_as_training_documents_and_the_teacher_goes_on(
    make: Callable[..., Stage], inputs: dict[str, Path], tokenizer: Path
):
    stage = make()
    facts = synthesize(stage)
    writer = Writer.of(load_model(inputs["teacher"])[0], tokenizer)
    candidates = {one["id"]: one for one in lines(stage, "candidates.jsonl")}
    assert len(candidates) == facts["candidates"] == 12
    assert not {"a0", "b0", "short"} & set(candidates)
    documents = lines(stage)
    assert len(documents) == facts["documents"] == 10
    for document in documents:
        ids = writer.ids(text_of(document["prompt"]))
        assert document["text"].startswith(writer.tokenizer.decode(ids[:PROMPT]))
        assert 1 <= document["tokens"] <= NEW
    assert sum(facts["prompts"].values()) == 10
    assert facts["tokens"] == sum(document["tokens"] for document in documents)


def test_excess_is_of_nats_per_byte_by_each_models_own_head(
    make: Callable[..., Stage], inputs: dict[str, Path], tokenizer: Path
):
    stage = make()
    synthesize(stage)
    one = lines(stage, "candidates.jsonl")[0]
    text = text_of(one["id"])
    for name in ("student", "teacher"):
        model = load_model(inputs[name])[0]
        writer = Writer.of(model, tokenizer)
        ids = torch.tensor([writer.ids(text)])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nats = functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        first = writer.tokenizer.decode(ids[0, :1].tolist())
        assert one[name] == pytest.approx(nats / (len(text) - len(first)), rel=1e-5)
    assert one["student"] > one["teacher"]


def test_a_writer_reads_texts_from_their_beginning(
    inputs: dict[str, Path], tokenizer: Path, begin_texts: Callable[[Path, str], int],
    tmp_path: Path,
):  # fmt: skip
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    begin_texts(tmp_path / "tokenizer", "<|endoftext|>")
    model, text = load_model(inputs["teacher"])[0], "a text of the city"
    plain, beginning = (Writer.of(model, f) for f in (tokenizer, tmp_path / "tokenizer"))
    ids = torch.tensor([[0, *plain.ids(text)]])
    assert beginning.ids(text) == ids[0].tolist()
    with torch.no_grad():
        logits = model(ids).logits[0, 1:-1]
    nats = functional.cross_entropy(logits, ids[0, 2:], reduction="sum").item()
    size = len(text) - len(plain.tokenizer.decode(ids[0, 1:2].tolist()))
    assert beginning.nats_per_byte(text) == pytest.approx(nats / size, rel=1e-5)
    long = text * 200
    assert (
        len(plain.ids(long[: beginning.reach(long)]))
        == len(plain.ids(long[: plain.reach(long)])) - 1
    )


@pytest.mark.parametrize("shorter", ["student", "teacher"])
def test_both_models_are_asked_about_the_text_that_the_shorter_one_reaches(
    make: Callable[..., Stage], inputs: dict[str, Path], tokenizer: Path, shorter: str
):
    file = inputs[shorter] / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": PROMPT + NEW}
    file.write_text(json.dumps(config))
    stage = make()
    synthesize(stage)
    for one in lines(stage, "candidates.jsonl"):
        for name in ("student", "teacher"):
            writer = Writer.of(load_model(inputs[name])[0], tokenizer)
            first = writer.ids(text_of(one["id"]))[: PROMPT + NEW]
            reached = writer.tokenizer.decode(first)
            assert one[name] == pytest.approx(writer.nats_per_byte(reached), rel=1e-6)


def candidates_of(*excesses: float) -> list[Candidate]:
    return [Candidate(str(each), "a", "text", 1 + each, 1.0) for each in excesses]


def test_prompts_are_drawn_in_proportion_to_the_excess_and_with_uniform_alike():
    teacher = {"kind": "folder", "path": "models", "sha256": 64 * "0"}
    asked = {"teacher": teacher, "documents": 8000}
    shares = {}
    for prompts in ("excess", "uniform"):
        settings = SynthesizeSettings.model_validate({**asked, "prompts": prompts})
        drawn = Counter(one.id for one in drawn_prompts(settings, candidates_of(-1, 1, 3), seed=5))
        shares[prompts] = [drawn[name] / 8000 for name in ("-1", "1", "3")]
    assert shares["excess"] == pytest.approx([0, 0.25, 0.75], abs=0.03)
    assert shares["uniform"] == pytest.approx([1 / 3] * 3, abs=0.03)
    settings = SynthesizeSettings.model_validate(asked)
    with pytest.raises(UserError, match="behind the teacher in none of 2 documents; use synthesiz"):
        drawn_prompts(settings, candidates_of(-1, 0), seed=5)


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(
    make: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = make()
    synthesize(whole)
    written, work = [], tmp_path / "work"
    continued = room.continued

    def dies(*arguments: Any) -> Any:
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt
        return continued(*arguments)

    monkeypatch.setattr(room, "continued", dies)
    with pytest.raises(KeyboardInterrupt):
        synthesize(make(work))
    resumed = make(work)
    synthesize(resumed)
    assert len(written) == 4, "three batches, and one that was killed"
    assert lines(resumed) == lines(whole)


def test_batches_and_candidates_follow_the_seed(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
):
    drawn, plain = [], room.continued

    def continued(*arguments: Any) -> Any:
        drawn.append(arguments[-1])
        return plain(*arguments)

    monkeypatch.setattr(room, "continued", continued)
    candidates = []
    for seed in (1, 2):
        stage = make(prompts="uniform")
        stage = replace(stage, settings=stage.settings | {"seed": seed})
        synthesize(stage)
        candidates.append([one["id"] for one in lines(stage, "candidates.jsonl")])
    assert len(set(drawn)) == len(drawn) == 6
    assert candidates[0] != candidates[1]


def test_a_text_ends_at_any_special_token():
    class Model:
        device = "cpu"

        def generate(self, prompt_BP: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.cat([prompt_BP, torch.tensor([[5, 9, 7, 8]])], dim=1)

    tokenizer = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    teacher: Any = SimpleNamespace(special_ids=[0, 7], model=Model(), tokenizer=tokenizer)
    settings = SynthesizeSettings.model_validate(
        {"teacher": {"kind": "folder", "path": "models", "sha256": 64 * "0"}}
    )
    assert room.continued(teacher, [[3, 4]], settings, 1) == [{"text": "3 4 5 9", "tokens": 2}]


@pytest.mark.parametrize(
    "change",
    [
        {"documents": 9},
        {"prompts": "uniform"},
        {"candidates": 3},
        {"candidate_characters": 64},
        {"prompt_tokens": 5},
        {"new_tokens": 5},
        {"least_new_tokens": NEW},
        {"temperature": 0.1},
        {"top_p": 0.1},
        {"batch_size": 3},
    ],
)
def test_every_setting_has_its_effect(make: Callable[..., Stage], change: dict[str, Any]):
    found = []
    for changes in ({}, change):
        stage = make(**changes)
        facts = synthesize(stage)
        found.append((facts, lines(stage), lines(stage, "candidates.jsonl")))
    assert found[0] != found[1]


def test_the_likeliest_tokens_alone_are_those_of_a_greedy_continuation(
    make: Callable[..., Stage], inputs: dict[str, Path], tokenizer: Path
):
    stage = make(top_p=1e-6)
    synthesize(stage)
    model = load_model(inputs["teacher"])[0]
    writer = Writer.of(model, tokenizer)
    for document in lines(stage):
        ids = writer.ids(text_of(document["prompt"]))[:PROMPT]
        for _ in range(document["tokens"]):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert document["text"] == writer.tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")


def test_random_states_of_all_devices_are_put_back(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
):
    put_back: dict[int, str] = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"of {device}")
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: put_back.update({device: state})
    )
    before = torch.get_rng_state()
    synthesize(make())
    assert torch.equal(torch.get_rng_state(), before)
    assert put_back == {0: "of 0", 1: "of 1"}


def test_the_documents_are_a_source_of_the_next_run(make: Callable[..., Stage], tmp_path: Path):
    stage = make()
    synthesize(stage)
    file = stage.folder / "documents.jsonl"
    source = {
        "kind": "files",
        "domain": "synthetic",
        "licence": "own",
        "paths": [str(file)],
        "id_field": "id",
        "sha256": digest_of_files(find_files([str(file)])),
    }
    facts = fetch_source(
        "own", FilesSource(**source), HeldOutSettings(fraction=0), tmp_path, cache=tmp_path
    )
    assert facts["documents"] == len(lines(stage))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": 100, "new_tokens": 30}, "are more than the teacher's 128 positions"),
        ({"prompt_tokens": 110, "new_tokens": 5}, "training documents none has more than"),
        ({"teacher": {"kind": "folder", "path": "no", "sha256": 64 * "0"}}, "synthesize.teacher"),
    ],
)
def test_what_can_not_be_written_is_said_before(
    make: Callable[..., Stage], change: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        synthesize(make(**change))
