"""The three kinds of model that the runner trains, one file each."""

from __future__ import annotations

from typing import Any

from gsr_kernels.continual.kinds.base import IGNORED, Kind
from gsr_kernels.continual.kinds.causal import Causal
from gsr_kernels.continual.kinds.classifier import Classifier
from gsr_kernels.continual.kinds.seq2seq import Seq2Seq
from gsr_kernels.continual.kinds.text import Writer

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Causal, Seq2Seq, Classifier)}

__all__ = ["IGNORED", "KINDS", "Causal", "Classifier", "Kind", "Seq2Seq", "Writer", "kind_of"]


def kind_of(config: Any, wanted: str | None) -> type[Kind]:
    """The kind of a model by its configuration, or the one ``wanted`` if it can be that.

    Raises:
        ValueError: it can be none of them, or not the one wanted.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    of = type(config)
    heads = {
        Causal.name: of in MODEL_FOR_CAUSAL_LM_MAPPING,
        Seq2Seq.name: of in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        Classifier.name: of in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    can = [name for name, has in heads.items() if has]
    if wanted is not None:
        if wanted not in can:
            raise ValueError(f"--kind {wanted}: {config.model_type} has no such head, but {', '.join(can) or 'none'}")
        return KINDS[wanted]
    if not can:
        raise ValueError(
            f"--model: {config.model_type} has no head that writes text or classifies it: give a causal language "
            "model, an encoder–decoder or a text encoder"
        )
    named = " ".join(getattr(config, "architectures", None) or ())
    if heads[Seq2Seq.name] and config.is_encoder_decoder:
        return Seq2Seq
    # an encoder can be had as a decoder too: what its checkpoint says comes first
    encodes = of in MODEL_FOR_MASKED_LM_MAPPING or not heads[Causal.name]
    if heads[Classifier.name] and "CausalLM" not in named and (encodes or "SequenceClassification" in named):
        return Classifier
    return Causal if heads[Causal.name] else KINDS[can[0]]
