"""The three kinds of model that the runner trains."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from gsr_kernels.continual.kinds.base import IGNORED, Kind
from gsr_kernels.continual.kinds.classifier import Classifier
from gsr_kernels.continual.kinds.writers import Causal, Seq2Seq, Writer

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Causal, Seq2Seq, Classifier)}

__all__ = ["IGNORED", "KINDS", "Causal", "Classifier", "Kind", "Seq2Seq", "Writer", "kind_of"]


def kind_of(config: Any, wanted: str | None) -> type[Kind]:
    """Return the kind of a model by its configuration, or the one ``wanted``; ValueError where it cannot be that."""
    of = type(config)
    heads: dict[type[Kind], Any] = {
        Causal: MODEL_FOR_CAUSAL_LM_MAPPING,
        Seq2Seq: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        Classifier: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    can = [kind for kind, models in heads.items() if of in models]
    if wanted is not None:
        if KINDS[wanted] not in can:
            names = ", ".join(kind.name for kind in can) or "none"
            raise ValueError(f"--kind {wanted}: {config.model_type} has no such head, but {names}")
        return KINDS[wanted]
    if not can:
        raise ValueError(
            f"--model: {config.model_type} has no head that writes text or classifies it: give a causal language "
            "model, an encoder–decoder or a text encoder"
        )
    named = " ".join(getattr(config, "architectures", None) or ())
    if Seq2Seq in can and config.is_encoder_decoder:
        return Seq2Seq
    # an encoder can be had as a decoder too: what its checkpoint says comes first
    encodes = of in MODEL_FOR_MASKED_LM_MAPPING or Causal not in can
    if Classifier in can and "CausalLM" not in named and (encodes or "SequenceClassification" in named):
        return Classifier
    return can[0]
