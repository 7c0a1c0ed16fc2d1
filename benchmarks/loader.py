"""Loading of training batches: speed, and its share of a training step of the default model."""

from __future__ import annotations

import itertools

import torch
from _timing import (
    MIXTURE,
    default_model,
    default_settings,
    print_header,
    print_table,
    require,
    time_in_turns,
)

from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.optim.build import build_optimizer
from wrinklefree.stability.clippers import build_clipper
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep


class Run:
    """Training in stage 2's settings, without checkpoints and tracking."""

    def __init__(self) -> None:
        self.settings = default_settings()[0].stage2
        self.data, self.model = default_model()
        self.model.train()
        self.optimizer = build_optimizer(self.model, self.settings.optimizer)
        self.clipper = build_clipper(self.settings.clipping)
        self.steps = itertools.count()

    def batches(self) -> list[Batch]:
        """The next step's."""
        step, count = next(self.steps), self.settings.gradient_accumulation_steps
        size = self.settings.batch_size
        return [
            self.data.batch(step, index, batch_size=size, micro_batches=count)
            for index in range(count)
        ]

    def step(self) -> None:
        """One optimizer step, with λ = 1."""
        step = TrainStep(self.model, Objective(NextToken()))
        corruption = step.objective.corruption
        self.optimizer.zero_grad(set_to_none=True)
        prepared = [corruption.prepare(batch, 0) for batch in self.batches()]
        denominator = sum(map(corruption.denominator, prepared))
        for micro in prepared:
            step.objective.loss(step(micro), micro, denominator).loss.backward()
        require(self.clipper.clip(list(self.model.parameters())).finite, "finite gradients")
        self.optimizer.step()


def check(data: TrainingData, rows: int) -> None:
    """A step's rows are rows of the files, and do not depend on how the step is divided."""
    whole = data.batch(3, 0, batch_size=rows, micro_batches=1)
    singles = [data.batch(3, index, batch_size=1, micro_batches=rows) for index in range(rows)]
    joined = torch.cat([batch.tokens_BT for batch in singles])
    require(torch.equal(whole.tokens_BT, joined), "the same rows however a step is divided")
    domains = read_mixture(MIXTURE).domains
    for tokens_T, ids_T, positions_T, domain in zip(
        whole.tokens_BT, whole.document_ids_BT, whole.positions_BT, whole.domain_B, strict=True
    ):
        equal = domains[int(domain)].train.tokens == tokens_T.numpy()
        require(equal.all(axis=1).any(), "rows of the files of their domain")
        pieces = itertools.groupby(ids_T.tolist())
        counted = [at for _, piece in pieces for at, _ in enumerate(piece)]
        require(positions_T.tolist() == counted, "positions that count from 0 in every piece")


def main() -> None:
    print_header("Loading of batches")
    run = Run()
    data, rows = run.data, run.settings.batch_size * run.settings.gradient_accumulation_steps
    check(data, rows)
    seconds = time_in_turns({"training step": run.step, "its batches": run.batches})
    tokens = rows * data.sequence_length
    title = f"{tokens} tokens a step; the ratio of 'its batches' is the share of loading"
    print_table(title, seconds, ["training step"], tokens)


if __name__ == "__main__":
    main()
