"""Models on the Hugging Face hub: hf:owner/name, or hf:owner/name@revision.

The only module that talks to the hub; both ways of it turn every error into one line.
"""

import re
from pathlib import Path

from caswit.errors import ModelError

PREFIX = "hf:"
MODEL_FILES = ("config.json", "model.safetensors")
_NAME = re.compile(r"hf:[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_on_hub(path: str | Path) -> bool:
    """Return whether a path names a model on the hub rather than in the file system."""
    return str(path).startswith(PREFIX)


def fetch(name: str | Path, *, weights_only: bool = False) -> Path:
    """Download a model, or find it in the cache, and return its folder.

    Args:
        name: hf:owner/name or hf:owner/name@revision.
        weights_only: Download weights under any name, and no config.

    Raises:
        ModelError: There is no such model, or the hub cannot be reached.
    """
    text = str(name)
    if not _NAME.fullmatch(text):
        raise ModelError(f"{text}: a model on the hub is hf:owner/name or hf:owner/name@revision")
    repository, _, revision = text.removeprefix(PREFIX).partition("@")
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt"] if weights_only else list(MODEL_FILES)
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=wanted)
    except Exception as error:  # the hub, the network and the cache each have errors of their own
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{text}: cannot be fetched ({type(error).__name__}: {reason}); check the name and the network, "
            "for a private model run: hf auth login"
        ) from error
    return Path(folder)


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload the files of a folder and return the address of the model's page.

    Raises:
        ModelError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        page = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # as in fetch
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{repository}: cannot be uploaded ({type(error).__name__}: {reason}); check the name and the network, "
            "and run: hf auth login"
        ) from error
    return str(page)
