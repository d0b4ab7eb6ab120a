"""Keeping some layers of a model: what comes out is smaller, independent, faithful, and an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForCausalLM,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    EsmConfig,
    EsmModel,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from budget_search.errors import UnsupportedModelError
from budget_search.model import depth_of, find_layers, keep_layers, undroppable

IDS = torch.arange(10, 26).reshape(2, 8)
SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def made(model_class: type[PreTrainedModel], config: Any) -> Any:
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():  # nothing at nought or one, where a mistake could hide
        nn.init.normal_(parameter, std=0.2)
    return model


def bert(model_class: type[PreTrainedModel] = BertForSequenceClassification, layers: int = 4, **extra: Any) -> Any:
    return made(model_class, BertConfig(num_hidden_layers=layers, **{**SMALL, **extra}))


def gpt2(**extra: Any) -> Any:
    return made(GPT2LMHeadModel, GPT2Config(vocab_size=60, n_embd=16, n_head=2, n_layer=4, n_positions=32, **extra))


def modernbert(layers: int = 7) -> Any:
    return made(ModernBertForMaskedLM, ModernBertConfig(num_hidden_layers=layers, local_attention=4, **SMALL))


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    first: torch.Tensor = model(input_ids=IDS)[0]
    return first


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def cut(model: Any, layers: nn.ModuleList, kept: list[int]) -> torch.Tensor:
    """What the model itself computes with its dropped layers taken out of the list in place."""
    modules = [layers[index] for index in kept]
    before = list(layers)
    layers[:] = []  # type: ignore[index]
    del layers[:]
    layers.extend(modules)
    try:
        return output(model)
    finally:
        del layers[:]
        layers.extend(before)
