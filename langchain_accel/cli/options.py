"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Annotated

import typer

LOADING, SAMPLING, OUTPUT = "Model and device", "Sampling (left out: what the checkpoint says, else greedy)", "Output"


class DeviceName(str, Enum):
    """Names of the devices, as `registry.DEVICES` has them."""

    xeon = "xeon"
    gaudi = "gaudi"
    inferentia = "inferentia"
    ascend = "ascend"
    reference = "reference"


Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder of the model, or a Hugging Face hub id.", rich_help_panel=LOADING)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=LOADING, show_default=False)
]
Device = Annotated[DeviceName, typer.Option("--device", "-d", help="What runs the model.", rich_help_panel=LOADING)]
Rows = Annotated[int, typer.Option(min=1, help="Requests served at once.", rich_help_panel=LOADING)]
MaxLen = Annotated[
    int, typer.Option(min=2, help="Tokens of prompt and answer together, per request.", rich_help_panel=LOADING)
]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=LOADING)]
Ranks = Annotated[
    int,
    typer.Option("--tensor-parallel-size", min=1, help="Ranks that share the weights.", rich_help_panel=LOADING),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=LOADING),
]
Replicas = Annotated[
    int, typer.Option(min=1, help="Whole copies of the model, each with its own rows.", rich_help_panel=LOADING)
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device-option", help="NAME=VALUE, the device's own setting; may be repeated.", rich_help_panel=LOADING
    ),
]

Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", rich_help_panel=SAMPLING)]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most probable tokens.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the smallest set with this probability.", rich_help_panel=SAMPLING)
]
MinP = Annotated[
    float | None, typer.Option(help="Drop tokens below this share of the best one.", rich_help_panel=SAMPLING)
]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 discourages.", rich_help_panel=SAMPLING)]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtracted once per token in the answer.", rich_help_panel=SAMPLING)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="Subtracted per occurrence in the answer.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int | None, typer.Option(help="Repeatable sampling; prompt i uses seed + i.", rich_help_panel=SAMPLING)
]
Stop = Annotated[
    list[str] | None, typer.Option(help="String that ends the answer; may be repeated.", rich_help_panel=SAMPLING)
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Go on past end-of-sequence tokens.", rich_help_panel=SAMPLING)
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for machines.", rich_help_panel=OUTPUT)]


def settings(words: Sequence[str] | None) -> dict[str, str] | None:
    """Return what `--device-option NAME=VALUE` words say; None where there are none.

    Raises:
        typer.BadParameter: a word is not of that form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals) or name in found:
            msg = f"--device-option {word}: write NAME=VALUE, each name once"
            raise typer.BadParameter(msg)
        found[name] = value
    return found or None
