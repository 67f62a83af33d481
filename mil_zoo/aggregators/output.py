"""What every aggregator returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class AggregatorOutput:
    """Holds what every aggregator returns for a batch of B bags with ΣN instances.

    Attributes:
        logits: ``[B, C]``, before softmax (one column with ``num_classes=1``, before the sigmoid).
        embedding: ``[B, E]``, the bag representation that the last classifier reads.
        attention: ``[ΣN]`` or ``[ΣN, C]``, sums to 1 within each bag (for each class); None where a method has none.
        attention_logits: what the softmax was taken of, same shape as ``attention``; None where the attention is not
            one softmax (an average over heads, say).
        head_attention: ``[ΣN, H]``, the heads or branches that ``attention`` averages; None where there is one.
        instance_logits: ``[ΣN, C]``, where the paper scores instances.
    """

    logits: Tensor
    embedding: Tensor
    attention: Tensor | None = None
    attention_logits: Tensor | None = None
    head_attention: Tensor | None = None
    instance_logits: Tensor | None = None

    def problem(self, bags: int, outputs: int, instances: int) -> str:
        """What is not as a batch of so many bags and instances has it, in words; "" where all is."""
        if self.logits.shape != (bags, outputs) or not self.logits.is_floating_point():
            dtype = str(self.logits.dtype).removeprefix("torch.")
            return f"float logits [{bags}, {outputs}], a row for each bag, not {dtype} {list(self.logits.shape)}"
        if self.embedding.ndim != 2 or len(self.embedding) != bags:
            return f"an embedding [{bags}, E], a row for each bag, not {list(self.embedding.shape)}"
        for name in ("attention", "attention_logits", "head_attention", "instance_logits"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != instances:
                return f"{name} with a row for each of the {instances} instances, not {list(rows.shape)}"
        return ""
