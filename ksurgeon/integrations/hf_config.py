"""What a config of transformers holds about ksurgeon: a rule to convert by, or the record of what was
done."""

from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from ksurgeon.errors import RuleError
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.record import Record
from ksurgeon.surgery.record_file import parse_record

__all__ = ["METHOD", "KsurgeonConfig", "compact"]

METHOD = "ksurgeon"


class KsurgeonConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Converts a dense checkpoint while ``from_pretrained`` loads it.

    ``AutoModel.from_pretrained(ID, quantization_config=KsurgeonConfig(rule="linear"))`` reads one weight
    after the other and puts the K-matrix that is fitted to it in its place, so that no two copies are ever
    held. In a ``config.json`` the same class holds the record of a converted model.

    Args:
        rule: name of a built-in rule, a rule file, or a ``Rule``.
        seed: of random starting values.
        record: what was done already, as ``ksurgeon.json`` has it; then there is no rule.

    Raises:
        RuleError: there is no such rule, or it is malformed.
        RecordError: the record is damaged, or a newer ksurgeon wrote it.
    """

    quant_method: str = METHOD  # type: ignore[assignment]

    def __init__(
        self,
        rule: str | Path | Rule | dict[str, Any] = "linear",
        *,
        seed: int = 0,
        record: Record | dict[str, Any] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise RuleError(f"quant_method of a KsurgeonConfig is {METHOD!r}, not {quant_method!r}")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.seed = seed
        self.record = parse_record(record, "config.json") if isinstance(record, dict) else record
        self.rule: Rule | None = None
        if self.record is None:
            self.rule = Rule.model_validate(rule) if isinstance(rule, dict) else load_rule(rule)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that the constructor takes."""
        plain: dict[str, Any] = {"quant_method": METHOD}
        if self.record is not None:
            return plain | {"record": compact(self.record)}
        assert self.rule is not None
        return plain | {
            "rule": self.rule.model_dump(mode="json", exclude_none=True),
            "seed": self.seed,
        }

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


def compact(record: Record) -> dict[str, Any]:
    """The record as plain data, without what the rest of a config tells: architecture and source's config."""
    plain = record.model_dump(mode="json", exclude={"architecture"})
    plain.get("source", {}).get("options", {}).pop("config", None)
    return plain
