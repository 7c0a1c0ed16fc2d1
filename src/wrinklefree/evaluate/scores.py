"""Held-out scores of a model and how they are aggregated. Imports no torch.

Within a domain a score is a ratio of sums, sum of nats / sum of scored tokens. Overall it is the
mean over domains weighted by the mixture's weights: the loss on text that is composed like the
training data, whatever number of held-out rows each domain happens to have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.stability.loss_variance import VarianceSplit

Kind = Literal["autoregressive", "block_diffusion"]

LABELS = {
    "base": "dense base",
    "pruned": "pruned",
    "naive": "naive ternary",
    "subln": "SubLN, untrained",
    "stage2": "stage 2",
    "distill_ar": "distilled",
    "dlm": "diffusion",
    "distill_dlm": "distilled diffusion",
}
"""What tables and plots call the models; a model of another name is called by it."""

_LARGEST_EXPONENT = 700.0
"""exp of more than this may overflow a double."""


@dataclass(frozen=True)
class Score:
    """A loss and the same number in other units."""

    loss: float
    """Nats per scored token; of a block-diffusion model the NELBO, an upper bound."""
    loss_standard_error: float | None
    """Over documents; None when those of a domain are a single one."""
    bytes_per_token: float

    @property
    def perplexity(self) -> float | None:
        """exp(loss); None where that overflows."""
        return math.exp(self.loss) if self.loss < _LARGEST_EXPONENT else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte of the scored tokens; None when they stand for no bytes.

        Special tokens cost nats and stand for no bytes, so the end of a document is paid for.
        """
        if not self.bytes_per_token:
            return None
        return self.loss / (math.log(2.0) * self.bytes_per_token)

    def as_json(self) -> dict[str, float | None]:
        """The four numbers that are reported."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "loss_standard_error": self.loss_standard_error,
        }


@dataclass(frozen=True)
class ScoreSums:
    """Sums over the scored tokens of each held-out row or document that has any, by its number."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]

    def as_json(self) -> dict[str, Any]:
        """The three lists."""
        return dict(vars(self))


@dataclass(frozen=True)
class HeldOutScores:
    """What a model reached on the held-out rows of a domain."""

    rows: ScoreSums
    documents: ScoreSums
    """Sums of each document that a row has a part of, over all its parts in these rows."""


@dataclass(frozen=True)
class DomainScore:
    """A model's score on the held-out rows of one domain."""

    score: Score
    rows: int
    """Rows with at least one scored token."""
    documents: int
    """Documents that these rows have a scored token of."""
    tokens: int
    bytes: int
    loss_variance: float
    """Variance of the rows' losses around the domain's, by tokens; nats²."""

    def as_json(self) -> dict[str, float | int | None]:
        """The score with the sample that it was measured on."""
        counts = {name: getattr(self, name) for name in ("rows", "documents", "tokens", "bytes")}
        return self.score.as_json() | counts | {"loss_variance": self.loss_variance}


@dataclass(frozen=True)
class ModelScore:
    """A model's scores on every domain and overall."""

    kind: Kind
    quantized: bool
    overall: Score
    domains: dict[str, DomainScore]
    loss_variance: VarianceSplit
    """Variance of the losses of rows that come from the domains by the mixture's weights."""

    def as_json(self) -> dict[str, Any]:
        """``models.<name>`` of ``evaluation.json``."""
        domains = {name: domain.as_json() for name, domain in self.domains.items()}
        about = {"kind": self.kind, "quantized": self.quantized}
        spread = {"loss_variance": self.loss_variance.as_json()}
        return about | self.overall.as_json() | spread | {"domains": domains}


def domain_score(found: HeldOutScores, where: str) -> DomainScore:
    """The score of a domain from sums over each of its rows and documents.

    The standard error is over documents, for rows cut from one document share its author, topic and
    format; see :func:`influences`.

    Raises
    ------
    UserError : the loss is not finite; ``where`` says of which model and domain.
    """
    rows, documents = found.rows, found.documents
    assert rows.tokens, "a domain without scored tokens has no score"
    tokens = sum(rows.tokens)
    loss = math.fsum(rows.nats) / tokens
    if not math.isfinite(loss):
        raise UserError(
            f"{where}: the held-out loss is {loss}, so the model's weights or activations are not"
            " finite; see the gradient norms in the history.jsonl of its stage and rerun it"
        )
    error = None
    if (count := len(documents.tokens)) > 1:
        influence_1N = influences(np.array([documents.nats]), np.array(documents.tokens))
        error = math.sqrt(float((influence_1N**2).sum()) / (count - 1) / count)
    count_bytes = sum(rows.bytes)
    variance = math.fsum(
        (nats / number - loss) ** 2 * number
        for nats, number in zip(rows.nats, rows.tokens, strict=True)
    )
    return DomainScore(
        Score(loss, error, count_bytes / tokens),
        rows=len(rows.tokens),
        documents=count,
        tokens=tokens,
        bytes=count_bytes,
        loss_variance=variance / tokens,
    )


def influences(nats_SN: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
    """N - 1 times how much each of S losses falls without a document, [S, N].

    The sum of their squares over (N - 1) N is the delete-one jackknife's variance of the loss,
    which for clusters is called CV3 (MacKinnon, Nielsen and Webb 2023, Journal of Applied
    Econometrics 38, 671-694). For documents of equal length an influence is the document's own loss
    less the mean, and the variance that of a mean.

    Parameters
    ----------
    nats_SN : float64, sums over the scored tokens of N >= 2 documents.
    tokens_N : scored tokens of each document, all above 0.
    """
    total = tokens_N.sum()
    loss_S1 = nats_SN.sum(axis=1, keepdims=True) / total
    return (len(tokens_N) - 1) * (nats_SN - loss_S1 * tokens_N) / (total - tokens_N)


def overall_score(domains: dict[str, DomainScore], weights: dict[str, float]) -> Score:
    """Mean of the domains' losses weighted by their shares of the training tokens.

    Bits per byte follow from the weighted mean of bytes per token, so that they too speak of text
    composed like the mixture. A domain of weight 0 is reported but does not count.

    Raises
    ------
    UserError : a domain with a weight was not scored, or no domain has one.
    """
    shares = _shares(domains, weights)
    loss = math.fsum(share * domains[name].score.loss for name, share in shares.items())
    bytes_per_token = math.fsum(
        share * domains[name].score.bytes_per_token for name, share in shares.items()
    )
    errors = [domains[name].score.loss_standard_error for name in shares]
    known = [error for error in errors if error is not None]
    overall_error = None
    if len(known) == len(errors):
        pairs = zip(shares.values(), known, strict=True)
        overall_error = math.sqrt(math.fsum((share * error) ** 2 for share, error in pairs))
    return Score(loss, overall_error, bytes_per_token)


def loss_variance(domains: dict[str, DomainScore], weights: dict[str, float]) -> VarianceSplit:
    """Variance of row losses (nats²) over text composed like the mixture, within and between.

    Within a domain rows count by their tokens; domains count by their weights. Errors are those of
    :func:`overall_score`. For a diffusion model the noise of the maskings counts as within.
    """
    shares = _shares(domains, weights)
    mean = math.fsum(share * domains[name].score.loss for name, share in shares.items())
    return VarianceSplit(
        within=math.fsum(share * domains[name].loss_variance for name, share in shares.items()),
        between=math.fsum(
            share * (domains[name].score.loss - mean) ** 2 for name, share in shares.items()
        ),
    )


def recovered_share(loss: float, *, naive: float, base: float) -> float | None:
    """How much of the damage of naive ternarization is undone: 0 as naive, 1 as the dense base.

    Negative when worse than naive; None when naive ternarization did no damage.
    """
    return (naive - loss) / (naive - base) if naive > base else None


def _shares(domains: dict[str, DomainScore], weights: dict[str, float]) -> dict[str, float]:
    """Weights above 0 as shares of their sum; UserError if there are none or one was not scored."""
    weighted = {name: weight for name, weight in weights.items() if weight > 0.0}
    if missing := sorted(set(weighted) - set(domains)):
        raise UserError(
            f"domain {missing[0]} has weight {weighted[missing[0]]:g} in the mixture but no"
            " held-out rows; raise held_out.fraction or the source's max_documents"
        )
    total = math.fsum(weighted.values())
    if not total:
        raise UserError("every weight of the mixture is 0; give a domain a weight and rerun it")
    return {name: weight / total for name, weight in weighted.items()}
