"""Where everything big lies, so that one setting moves all of it."""

import os
from pathlib import Path

import platformdirs


def storage() -> Path:
    """The folder of data, models, tokens, base models and kernels; made when first written to.

    FRACTAL_STORAGE, or else `fractal-llm` in the user's folder for caches. Nothing in it is
    anyone's work: all of it can be fetched or computed again.
    """
    named = os.environ.get("FRACTAL_STORAGE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(platformdirs.user_cache_path("fractal-llm"))


def nanochat_folder() -> Path:
    """The base folder of nanochat: NANOCHAT_BASE_DIR, or the one that it makes; not made here."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
