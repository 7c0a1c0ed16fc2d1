"""Which data sets of the catalog this machine can reach."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from wrinklefree.config.catalog import Catalog, DataSet
from wrinklefree.config.catalog_text import unknown

TIMEOUT_SECONDS = 5.0
_CARD = "README.md"


def check_catalog(catalog: Catalog, names: Sequence[str]) -> tuple[str, bool]:
    """A line for each data set, and whether the hub let this machine have all of them.

    Asks the hub (``HF_ENDPOINT``, with ``HF_TOKEN``) for the head of a file of the pinned commit,
    of all data sets at the same time, and once whether a gated one is open to this user. Where
    there is no answer at all, one sentence stands for all lines.

    Parameters
    ----------
    names : data sets, and recipes, which stand for theirs; none for the whole catalog.

    Raises
    ------
    UserError : the catalog has no such name.
    """
    from huggingface_hub import constants

    chosen = _data_sets(catalog, names)
    with ThreadPoolExecutor(len(chosen)) as pool:
        answers = list(pool.map(_ask, (catalog.datasets[name] for name in chosen)))
    lines: list[str] = []
    silent: dict[str, str] = {}
    reached = 0
    for name, (obstacle, silence) in zip(chosen, answers, strict=True):
        if silence:
            silent[name] = silence
            continue
        lines.append(f"{name:<24} {_told(catalog.datasets[name], obstacle)}")
        reached += not obstacle
    if silent:
        which = "any data set" if len(silent) == len(chosen) else ", ".join(silent)
        lines.append(
            f"{constants.ENDPOINT} gave no answer about {which}: {next(iter(silent.values()))}."
            " Check the network and its proxy, or name a mirror in HF_ENDPOINT"
        )
    return "\n".join(lines), reached == len(chosen)


def _data_sets(catalog: Catalog, names: Sequence[str]) -> list[str]:
    chosen: dict[str, None] = {}
    for name in names or catalog.datasets:
        if name in catalog.datasets:
            chosen[name] = None
        elif name in catalog.recipes:
            chosen |= dict.fromkeys(catalog.recipes[name].weights)
        else:
            raise unknown(catalog, name)
    return list(chosen)


def _told(entry: DataSet, obstacle: str | None) -> str:
    if obstacle:
        return f"not reachable: {obstacle}"
    notes = ["reachable"]
    notes += [] if entry.revision else ["no commit is pinned"]
    notes += ["cannot be streamed, see wrinklefree catalog show"] if entry.obstacle else []
    return "; ".join(notes)


def _ask(entry: DataSet) -> tuple[str | None, str | None]:
    """What stands between this machine and the data set, and why there was no answer, if so."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    url = hf_hub_url(entry.dataset, _CARD, repo_type="dataset", revision=entry.revision)
    try:
        if entry.gated:
            _ask_for_access(entry)
        if get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS).commit_hash is None:
            return "what answered is no hub, for it names no commit", None
    except errors.RemoteEntryNotFoundError:
        pass  # the commit is there, without a card
    except errors.GatedRepoError:
        page = f"https://huggingface.co/datasets/{entry.dataset}"
        return f"gated; accept the terms on {page} and set HF_TOKEN", None
    except errors.RevisionNotFoundError:
        return f"the hub has no commit {entry.revision or 'main'} of {entry.dataset}", None
    except errors.RepositoryNotFoundError:
        return f"the hub has no {entry.dataset}, or only for others (HF_TOKEN)", None
    except errors.HfHubHTTPError as error:
        return f"the hub answered {error.response.status_code}", None
    except (HTTPError, OSError) as error:
        return None, " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return None, None


def _ask_for_access(entry: DataSet) -> None:
    """Raise GatedRepoError where only the card is open to this user."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = f"{constants.ENDPOINT}/api/datasets/{entry.dataset}/auth-check"
    headers = build_hf_headers()
    hf_raise_for_status(get_session().get(url, headers=headers, timeout=TIMEOUT_SECONDS))
