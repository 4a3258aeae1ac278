"""Files of the Hugging Face hub: `hf://org/name/file`, or `hf://org/name@revision/file`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from detrkit.runtime.extras import pip_install

PREFIX = "hf://"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([\w.+-]+(?:/[\w.+-]+)*)")
BESIDE = "config.json"


def get(address: str) -> Path:
    """The file of an address, in the hub's own cache; with the `config.json` beside it, if there is one.

    Raises:
        ValueError: the address is none, or the package huggingface_hub is not installed.
        OSError: the file cannot be downloaded.
    """
    found = ADDRESS.fullmatch(address)
    if found is None or ".." in address.split("/"):
        raise ValueError(f"{address}: expected hf://ORGANISATION/NAME/FILE, or hf://ORGANISATION/NAME@REVISION/FILE")
    repository, revision, name = found.groups()
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise ValueError(f"{address} needs a package: {pip_install('hub')}") from error
    try:
        try:
            beside = f"{name.rpartition('/')[0]}/{BESIDE}".removeprefix("/")
            hf_hub_download(repository, beside, revision=revision)
        except EntryNotFoundError:
            pass
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # of many classes, which change from release to release
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        url = f"{host}/{repository}/resolve/{revision or 'main'}/{name}"
        raise OSError(
            f"cannot download {address}: {reason}; fetch {url} elsewhere, and give the file's path instead"
        ) from error
