"""Words of older scripts on the command line, and what replaced them."""

from __future__ import annotations

from collections.abc import Sequence

# `run_generation.py` of optimum-habana's text-generation examples spells its options with underscores.
_ALWAYS = {
    "--use_hpu_graphs": "shapes are always captured once and replayed",
    "--use_kv_cache": "the KV cache is always on",
}
_SWITCHES = {"--bf16": ("--dtype", "bfloat16")}
_RENAMED = {
    "--max_new_tokens": "--max-new-tokens",
    "--max_input_tokens": "--max-input-tokens",
    "--n_iterations": "--iterations",
    "--model_name_or_path": "--model",
}


def modern(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments in today's words, and one note for each that was replaced.

    `--name value` and `--name=value` are both understood; what stands behind a bare `--` is left alone.
    """
    words: list[str] = []
    notes: list[str] = []
    for place, word in enumerate(args):
        if word == "--":
            return [*words, *args[place:]], notes
        name, equals, value = word.partition("=")
        if word in _ALWAYS:
            notes.append(f"{word}: not needed, {_ALWAYS[word]}")
        elif word in _SWITCHES:
            words += _SWITCHES[word]
            notes.append(f"{word}: now {' '.join(_SWITCHES[word])}")
        elif name in _RENAMED:
            words.append(_RENAMED[name] + equals + value)
            notes.append(f"{name}: now {_RENAMED[name]}")
        else:
            words.append(word)
    return words, notes
