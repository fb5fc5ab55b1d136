"""The compile cache of `libneuronxla.neuron_cc_cache`: a folder of entries keyed by graph."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.standins.neuron.machine import COMPILER_VERSION


class CacheUrl:
    """Where the cache is."""

    def __init__(self, url: str, url_type: str = "fs") -> None:
        self.url = url

    def is_s3(self) -> bool:
        return False

    @classmethod
    def get_cache_url(cls, cache_dir: str | None = None) -> CacheUrl:
        default = os.environ.get("NEURON_COMPILE_CACHE_URL", str(Path(tempfile.gettempdir()) / "neuron-compile-cache"))
        return cls(cache_dir or default)


class CompileCache:
    """A cache at a place."""

    def __init__(self, cache_url: CacheUrl) -> None:
        self.cache_url = cache_url
        self.cache_path = cache_url.url


class CompileCacheFs(CompileCache):
    """A cache in a folder."""

    def get_cache_dir_with_cache_key(self, key: str) -> str:
        return f"{self.cache_path}/neuronxcc-{COMPILER_VERSION}/{key}"

    def get_cache_dir(self, model_hash: str, compile_flags_str: str) -> str:
        return self.get_cache_dir_with_cache_key(f"MODULE_{model_hash}+{compile_flags_str}")

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def upload_string_to_file(self, path: str, data: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(data, encoding="utf-8")


class CompileCacheS3(CompileCacheFs):
    """Named by optimum-neuron, never made."""


def create_compile_cache(cache_url: CacheUrl) -> CompileCacheFs:
    """As the library's function, which optimum-neuron replaces while it exports a hub model."""
    return CompileCacheFs(cache_url)


def current_cache(cache_url: CacheUrl) -> Any:
    """Return the cache that the function in force gives."""
    return sys.modules["libneuronxla.neuron_cc_cache"].create_compile_cache(cache_url)
