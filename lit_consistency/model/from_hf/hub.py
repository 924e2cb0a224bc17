"""A model of the Hugging Face hub, in the hub's own cache: what is fetched, and what to do where that cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lit_consistency.model.from_hf.weights import KINDS
from lit_consistency.model.tokenizer_files import TOKENIZER_FILES
from lit_consistency.records.model_folder import LICENCES

REPOSITORY = re.compile(r"(?!\.\.?/)[\w.-]+/(?!\.\.?$)[\w.-]+")
BESIDE = ("config.json", *TOKENIZER_FILES, "README.md", *LICENCES)
"""What is fetched with the weights: no code, whatever the repository holds."""


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """The files of a model, from the cache or the hub, and the commit that they are of.

    Args:
        repository: ``ORG/MODEL``.
        revision: commit, branch or tag; None: the newest.

    Raises:
        ValueError: the hub cannot be reached, or gives no such model to this user.
    """
    for kind in KINDS:  # pickled weights only where there are no others
        patterns = [*BESIDE, *kind, f"{kind[0]}.index.json"]
        folder = _snapshot(repository, revision, patterns)
        if any(folder.glob(kind[1])):
            break
    return folder, folder.name


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ValueError(
            f"{repository}: its authors ask for an agreement; expected it accepted at "
            f"https://huggingface.co/{repository}, and a login, as by `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{repository}: the hub has no such model, or not for this user") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"revision = {revision}: {repository} has no such commit, branch or tag") from error
    except HFValidationError as error:
        raise ValueError(f"{repository}: expected ORG/MODEL ({error})") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached, {type(error).__name__}"
        raise ValueError(
            f"{repository}: not in the cache, and {why}; expected a network, or a folder that was fetched where there "
            f"is one: `hf download {repository} --local-dir DIR`, then `import DIR --to checkpoints/{repository}`"
        ) from error
