"""Every architecture for sequence classification, and some for tags: exact after a re-load, or refused and told why."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from budget_search.core.errors import UnsupportedModelError
from budget_search.models.keep_layers import keep_layers

LAYERS = 6
KEPT_SETS = ((0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (0, 1, 4, 5), (0, 2, 4), (1, 3, 5), (0, 1), (3,))

# Sizes by the names under which the architectures know them; a name that a config lacks is not used.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth"], LAYERS),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_decoder_layers", "num_self_attends_per_block"], LAYERS),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"], 32),
    **dict.fromkeys(["word_embed_proj_dim", "d_latents", "prediction_head_size", "pooler_hidden_size"], 32),
    **dict.fromkeys(["input_embedding_size", "output_embedding_size", "true_hidden_size", "entity_emb_size"], 32),
    **dict.fromkeys(["intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "d_inner", "ffn_dim"], 32),
    **dict.fromkeys(["hidden_dim", "ffn_hidden_size", "dff", "n_inner", "feed_forward_size"], 32),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "mlp_intermediate_size"], 16),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "num_key_value_heads", "num_kv_heads", "n_mamba_heads"], 4),
    **dict.fromkeys(["head_dim", "d_head", "d_kv", "kv_channels", "v_head_dim", "attention_head_size"], 8),
    **dict.fromkeys(["vocab_size", "entity_vocab_size", "pronunciation_vocab_size", "shape_vocab_size"], 99),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "max_2d_position_embeddings"], 64),
    **dict.fromkeys(["pad_token_id", "pad_index"], 1),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"], 8),
}


# What the rule above cannot know: lists per layer that have to be written out, sizes that must divide each other.
EXTRA: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "deepseek_v2": {"first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gptj": {"rotary_dim": 4},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "mistral4": {"head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 32},
    "reformer": {"attn_layers": ["local", "lsh"] * (LAYERS // 2), "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2)},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2)},
    **{kind: {"linear_key_head_dim": 8, "linear_value_head_dim": 8} for kind in ("qwen3_5_text", "qwen3_next")},
}


def tiny_config(kind: str) -> PreTrainedConfig:
    return _tiny(CONFIG_MAPPING[kind], EXTRA.get(kind, {}))


def _tiny(config_class: type[PreTrainedConfig], extra: dict[str, Any]) -> PreTrainedConfig:
    default = config_class()
    sizes = {name: size for name, size in SIZES.items() if name in vars(default)}
    nested = {name: type(part) for name, part in vars(default).items() if isinstance(part, PreTrainedConfig)}
    parts = {name: _tiny(part_class, {}).to_dict() for name, part_class in nested.items()}
    return config_class(**{**sizes, **parts, **extra})


@dataclass
class Outcome:
    """What became of one architecture; ``wrong`` must stay empty."""

    kind: str
    exact: list[tuple[int, ...]] = field(default_factory=list)
    refused: dict[tuple[int, ...], str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    not_built: str = ""

    @property
    def verdict(self) -> str:
        if self.not_built:
            return "not built"
        return "wrong" if self.wrong else "exact" if self.exact else "refused"


def sweep(kind: str, auto_model: Any = AutoModelForSequenceClassification) -> Outcome:
    outcome = Outcome(kind)
    torch.manual_seed(0)
    try:
        model = auto_model.from_config(tiny_config(kind)).eval()
    except Exception as error:
        outcome.not_built = f"{type(error).__name__}: {error}".splitlines()[0]
        return outcome
    for parameter in model.parameters():  # a head or a scale initialised to nought or one would hide a mistake
        nn.init.normal_(parameter, std=0.2)
    for kept in KEPT_SETS:
        try:
            smaller = keep_layers(model, kept)
        except UnsupportedModelError as error:
            outcome.refused[kept] = str(error)
            continue
        if faults := list(find_faults(model, smaller, kept)):
            outcome.wrong += [f"{kept}: {fault}" for fault in faults]
        else:
            outcome.exact.append(kept)
    return outcome


def find_faults(model: PreTrainedModel, smaller: PreTrainedModel, kept: tuple[int, ...]) -> Iterator[str]:
    if smaller.num_parameters() >= model.num_parameters():
        yield "not smaller"
    lists = layer_lists(model)
    originals = model.state_dict()
    for name, weight in smaller.state_dict().items():
        original = originals[original_name(name, lists, kept)]
        if weight.shape == original.shape and not torch.equal(weight, original):
            yield f"{name} is not the original's"
    expected = reference_logits(model, lists, kept)
    if not torch.equal(logits_of(smaller), expected):
        yield f"other logits in memory, by {(logits_of(smaller) - expected).abs().max():.2g}"
    with tempfile.TemporaryDirectory() as folder:
        smaller.save_pretrained(folder)
        reloaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        yield f"other weights after the re-load: {info}"
    realign(reloaded)
    if not torch.equal(logits_of(reloaded), expected):
        yield f"other logits after the re-load, by {(logits_of(reloaded) - expected).abs().max():.2g}"
    if not torch.allclose(logits_of(reloaded, cache=True), expected, atol=1e-5):
        yield "other logits with a cache"


def realign(model: PreTrainedModel) -> None:
    """Move weights off the mapped file: where a tensor begins in memory may change the last bit of a product."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def layer_lists(model: PreTrainedModel) -> list[str]:
    """Names of the lists of layers, found by length alone; not with the code under test."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {name: module for name, module in lists.items() if not any(part.isdigit() for part in name.split("."))}
    return [name for name, module in outer.items() if len(module) == LAYERS]


def original_name(name: str, lists: list[str], kept: tuple[int, ...]) -> str:
    for prefix in lists:
        if name.startswith(f"{prefix}."):
            index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            return f"{prefix}.{kept[int(index)]}.{rest}"
    return name


@torch.no_grad()
def logits_of(model: PreTrainedModel, cache: bool = False) -> torch.Tensor:
    off = {} if cache else {name: False for name in ("use_cache", "use_mems") if hasattr(model.config, name)}
    logits: torch.Tensor = model(input_ids=torch.arange(10, 34).reshape(2, 12), **off).logits
    assert logits.isfinite().all()
    return logits


def reference_logits(model: PreTrainedModel, lists: list[str], kept: tuple[int, ...]) -> torch.Tensor:
    """The original's own logits without the dropped layers, as far from the code under test as can be.

    Nothing of the model is changed: each dropped layer runs, and its output is replaced by its input.
    """
    layers = list(model.get_submodule(lists[0]))
    if len(lists) > 1 or hasattr(layers[0], "backward_pass"):
        return cut_reference_logits(model, lists, kept)
    with ExitStack() as patches:
        for index in set(range(LAYERS)) - set(kept):
            forward = passing_by(layers[index].forward)
            patches.enter_context(patch.object(layers[index], "forward", forward))
        return logits_of(model)


def passing_by(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` that gives back its input, in the shape of its output."""

    def passed_by(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        inputs = args or (kwargs["hidden_states"],)
        if isinstance(output, torch.Tensor):
            return inputs[0]
        if isinstance(output, dict):
            return {**output, "feature_map": inputs[0]}
        states = [before for before, after in zip(inputs, output, strict=False) if is_state(before, after)]
        return type(output)([*states, *output[len(states) :]])

    return passed_by


def is_state(before: Any, after: Any) -> bool:
    return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.shape == after.shape


def cut_reference_logits(model: PreTrainedModel, lists: list[str], kept: tuple[int, ...]) -> torch.Tensor:
    """The same for layers without a single input and output, parallel or reversible: a copy with its lists cut down."""
    cut = deepcopy(model)
    for name in lists:
        parent = cut.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.ModuleList(cut.get_submodule(f"{name}.{index}") for index in kept))
        parent.n_layers = len(kept)
        for index, layer in enumerate(cut.get_submodule(name)):
            for module in layer.modules():
                module.layer_id = index
    return logits_of(cut)


@pytest.mark.slow
@pytest.mark.xdist_group("architectures")
def test_every_architecture_is_exact_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [sweep(kind) for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES]
    counts = Counter(outcome.verdict for outcome in outcomes)
    with capsys.disabled():
        print("\n" + "\n".join(line for outcome in outcomes if (line := described(outcome))))
        print(f"{len(outcomes)} architectures: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    assert not [fault for outcome in outcomes for fault in outcome.wrong]
    assert all(reason.strip() for outcome in outcomes for reason in outcome.refused.values())
    assert counts["exact"] >= 105
    assert counts["exact"] + counts["refused"] >= 125


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "xlnet", "modernbert"])
def test_models_that_tag_words_are_exact(kind: str) -> None:
    """Their base models have no pooler, and their heads read every token."""
    outcome = sweep(kind, AutoModelForTokenClassification)
    assert (outcome.not_built, outcome.wrong) == ("", [])
    # ModernBERT's layers alternate between two kinds of attention, so a few sets are refused.
    assert len(outcome.exact) >= (len(KEPT_SETS) if kind != "modernbert" else 1)


def described(outcome: Outcome) -> str:
    """One line for whatever is not exact for every set."""
    reason = outcome.not_built or next(iter(outcome.refused.values()), "")
    return f"{outcome.kind}: {outcome.verdict} {len(outcome.exact)}/{len(KEPT_SETS)}: {reason}" if reason else ""
