"""What is needed to build a model's architecture again, without its weights and without a network."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Kind", "Source"]

Kind = Literal["timm", "torchvision", "transformers", "function"]


class Source(BaseModel):
    """Where a model comes from.

    Attributes:
        kind: the library that builds it, or "function" for a Python function.
        name: the model's name there, ``module:function``, or the folder.
        options: arguments of the builder; for transformers the whole config under "config".
        weights: "pretrained", "random", the file they were read from, or "given" where the model came with
            its weights from the caller.
        weights_note: what a user has to know about the weights, such as that they are random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    name: str
    options: dict[str, Any] = {}
    weights: str = "given"
    weights_note: str | None = None
