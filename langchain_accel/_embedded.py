"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path


def embedded_reader() -> str:
    r"""Return the folder of the reader: a small chat model that answers from passages and calls tools.

    Six million parameters, trained by `tools/reader` on text that a script wrote; `README.md` in the folder is its
    model card, with scores and limits. It shows that a chain works and lets tests check meaning, offline; it knows
    nothing of the world.

    Example:
        ```python
        from langchain_accel import ChatXeon, embedded_reader

        llm = ChatXeon(model=embedded_reader(), dtype="float32", max_tokens=128)
        llm.invoke("Passages:\nThe ferry leaves every 40 minutes.\n\nQuestion: How often does the ferry leave?")
        ```
    """
    return str(Path(__file__).parent / "reader")
