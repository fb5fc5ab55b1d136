"""The real mindformers and MindSpore, on MindSpore's CPU backend; nothing here needs an NPU."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _not_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled graphs of all tests go to one folder, and not to the user's: the same model is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield
