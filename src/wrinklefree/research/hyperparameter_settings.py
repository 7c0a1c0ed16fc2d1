"""``search``: which settings of stage 2 are tried, and with which values."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay
from wrinklefree.schema.reads import ALTERNATIVES, WITHOUT_EFFECT
from wrinklefree.schema.section import MOST, Rows, Section, Workers
from wrinklefree.train.stage2_settings import Stage2Settings

SECTION = "stage2"
"""Whose settings are tried."""
_ALIKE = ("steps", "batch_size", "gradient_accumulation_steps")
_OF_THE_SEARCH = ("evaluate_interval", "evaluate_rows_per_domain", "telemetry_interval")

SettingPath = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=256)
]
Bound = Annotated[float, Field(ge=-MOST, le=MOST)]
Choice = bool | Annotated[int, Field(ge=-MOST, le=MOST)] | Bound | str


class RangeSettings(Section):
    """The values of one setting: all from ``low`` to ``high``, or some ``choices``."""

    low: Bound | None = None
    """Smallest value. A whole number if the setting is one."""
    high: Bound | None = None
    """Largest value."""
    log: bool = False
    """Draw evenly on a logarithmic scale, as is right for learning rates."""
    choices: Annotated[list[Choice], Field(min_length=2, max_length=100)] | None = None
    """Values without an order, in place of ``low`` and ``high``."""

    @model_validator(mode="after")
    def _bounds_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stands beside low, high or log: give one or the other")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, which has no logarithm: raise it or leave log")
        return self

    @property
    def ends(self) -> list[Choice]:
        """The values between which, or of which, all are."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None, "the validator saw to it"
        return [self.low, self.high]

    def contains(self, value: Any) -> bool:
        """Whether a trial could have it."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.ends
        return low <= value <= high


class SearchSettings(Section):
    """Hyperparameter search: many trainings of stage 2, each with other settings."""

    ranges: Annotated[dict[SettingPath, RangeSettings], Field(min_length=1)]
    """What is tried, by the dotted path of a setting within ``stage2`` (``optimizer.muon.lr``). A
    range of an alternative that is not chosen has no effect."""
    trials: Annotated[int, Field(gt=0, le=100_000)]
    """Number of trainings, with those that are stopped early. The first has the settings of stage
    2."""
    workers: Workers
    """Processes that train at the same time. The trials repeat exactly only with one."""
    threads: Workers
    """CPU threads of a process."""
    evaluations: Annotated[int, Field(gt=0, le=10_000)] = 8
    """Measurements of the held-out loss in a training. After each but the last, a training is
    stopped if its best loss is above the median of the others at this step."""
    rows_per_domain: Rows = 16
    """Held-out rows of each domain to measure on, the same rows each time."""

    @model_validator(mode="after")
    def _values_are_of_their_settings(self) -> Self:
        for path, values in self.ranges.items():
            _check(path, values)
        return self


def counting(
    ranges: Mapping[str, RangeSettings], settings: Stage2Settings
) -> dict[str, RangeSettings]:
    """The ranges that have an effect, by path in order: engines hand them over in other ones."""

    def counts(path: str) -> bool:
        first, *others = path.split(".")
        if first == "distillation":
            return "teacher" in ranges or settings.taught is not None
        names = ALTERNATIVES.get(first, ())
        return not (others and others[0] in names) or others[0] == getattr(settings, first).name

    return {path: ranges[path] for path in sorted(ranges) if counts(path)}


def laid(settings: Stage2Settings, values: Mapping[str, Any]) -> Stage2Settings:
    """``settings`` with ``values`` by dotted path, checked as any of stage 2.

    What is said of unusual values is left out: to find out about them is what a search is for.

    Raises
    ------
    UserError : they don't go together.
    """
    given = overlay(settings.model_dump(), nested(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Stage2Settings.model_validate(given)
        except ValidationError as error:
            told = ", ".join(f"{path} {value}" for path, value in values.items())
            raise UserError(f"{SECTION} with {told}: {_said(error)}") from None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    whole: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        place = whole
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return whole


def is_whole(path: str) -> bool:
    """Whether the setting is an integer."""
    return _fields()[path].annotation is int


def _check(path: str, values: RangeSettings) -> None:
    """Raise ValueError where stage 2 has no such setting, or it can't have such a value."""
    fields = _fields()
    if path not in fields:
        close = difflib.get_close_matches(path, fields, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"ranges has {path}, which is no setting of {SECTION}{hint}")
    if path in _ALIKE:
        raise ValueError(f"ranges has {path}, but trials are compared after as many rows")
    if path in (*_OF_THE_SEARCH, *WITHOUT_EFFECT):
        raise ValueError(f"ranges has {path}, on which no loss depends")
    if path in {f"{block}.name" for block in ALTERNATIVES}:
        raise ValueError(f"ranges has {path}: choose one, and make a search for each")
    field = fields[path]
    if values.choices is None and field.annotation not in (int, float):
        raise ValueError(f"ranges has low and high for {path}, which is no number: give choices")
    bounded: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm]
    kind = TypeAdapter(bounded)
    for value in values.ends:
        # Bounds are read as floats, and JSON has 8.0 for 8.
        whole = is_whole(path) and isinstance(value, float) and value.is_integer()
        try:
            kind.validate_python(int(value) if whole else value, strict=True)
        except ValidationError as error:
            raise ValueError(f"ranges has {path} at {value!r}: {_said(error)}") from None


def _fields() -> dict[str, FieldInfo]:
    """By path, all settings of stage 2 that are no group of others."""

    def below(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from below(kind, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", field

    return dict(below(Stage2Settings, ""))


def _said(error: ValidationError) -> str:
    """The first problem, as it goes on behind a colon."""
    said = error.errors()[0]["msg"].removeprefix("Value error, ")
    return said[0].lower() + said[1:]
