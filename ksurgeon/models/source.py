"""What is needed to build a model's architecture again, without its weights and without a network."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

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

    _is_read: bool = PrivateAttr(default=False)

    @property
    def code(self) -> str | None:
        """What it runs besides the libraries' own models, as a user reads it; None for nothing."""
        if self.kind == "function":
            given = ", ".join(f"{name}={value!r:.60}" for name, value in self.options.items())
            return f"the function {self.name}({given})"
        return f"model code in {self.name}" if self.options.get("trust_remote_code") else None

    @property
    def is_trusted(self) -> bool:
        """Whether what it runs may run: the user named it, or allowed it, or it runs nothing."""
        return self.code is None or not self._is_read

    def as_read(self) -> Self:
        """The same from a file, whose author is not the user: no code of it is run."""
        return self._copy(True)

    def as_trusted(self) -> Self:
        """The same where the user allowed its code to run."""
        return self._copy(False)

    def _copy(self, is_read: bool) -> Self:
        copy = self.model_copy()
        copy._is_read = is_read
        return copy
