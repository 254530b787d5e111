"""The Hugging Face hub, as far as conversions use it. ``HF_TOKEN`` in the environment is its token."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from shared.errors import HubUnreachableError, NotFoundError


def download(repository: str, path: str) -> Path:
    """One file of a model repository, from the hub or from its local cache.

    Raises:
        NotFoundError: The hub was reached, and has no such file.
        HubUnreachableError: It could not be reached, and the cache does not have the file.
    """
    try:
        return Path(hf_hub_download(repository, path))
    except LocalEntryNotFoundError as error:  # of the cache: says nothing about the hub
        raise _unreachable(error) from error
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise NotFoundError(f"The model hub has no {path} in {repository}.") from error
    except Exception as error:  # whatever the HTTP library beneath the hub's client raises
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> HubUnreachableError:
    return HubUnreachableError(str(error.__cause__ or error).partition("\n")[0])


def push(folder: Path, name: str) -> str:
    """Upload a model folder; the full name of its repository.

    Raises:
        HubUnreachableError: It could not be uploaded; the folder is complete where it is.
    """
    api = HfApi()
    try:
        repository = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder)
    except (OSError, HfHubHTTPError) as error:
        raise HubUnreachableError(
            f"The model is complete in {folder}, but could not be pushed to the hub as {name}: "
            f"{str(error).partition(chr(10))[0]}. When the hub can be reached, and HF_TOKEN holds a token that may "
            f"write: hf upload {name} {folder}"
        ) from error
    return str(repository.repo_id)
