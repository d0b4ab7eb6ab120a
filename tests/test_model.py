"""Keeping some layers of a model: what comes out is smaller, independent, faithful, and an ordinary checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
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
    CLIPVisionConfig,
    CLIPVisionModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    EsmConfig,
    EsmModel,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    GPT2LMHeadModel,
    JambaConfig,
    JambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from budget_search.core.errors import UnsupportedModelError, UsageError
from budget_search.data.kinds import kind_of
from budget_search.models.keep_layers import find_layers, keep_layers, undroppable
from budget_search.models.pretrained import load_pretrained, resolve_model

IDS = torch.arange(10, 26).reshape(2, 8)
SMALL_PART: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
SMALL: dict[str, Any] = {**SMALL_PART, "vocab_size": 60, "max_position_embeddings": 32, "pad_token_id": 0}


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


def cut_down(model: Any, name: str, kept: list[int]) -> Any:
    """An independent smaller model, good for a forward pass only: a copy with its list of layers shortened."""
    copied = deepcopy(model)
    copied.set_submodule(name, nn.ModuleList(copied.get_submodule(f"{name}.{index}") for index in kept))
    return copied


def test_the_kept_layers_compute_what_they_did() -> None:
    model = bert()
    smaller = keep_layers(model, [1, 3])
    assert torch.equal(output(smaller), output(cut_down(model, "bert.encoder.layer", [1, 3])))
    assert len(find_layers(smaller)) == smaller.config.num_hidden_layers == 2


def test_the_smaller_model_holds_fewer_parameters() -> None:
    model = bert()
    a_layer = sum(parameter.numel() for parameter in model.bert.encoder.layer[0].parameters())
    assert keep_layers(model, [0, 2]).num_parameters() == model.num_parameters() - 2 * a_layer


@pytest.mark.parametrize(
    "head", [BertModel, BertForMaskedLM, BertForTokenClassification, BertForSequenceClassification]
)
def test_a_stock_reload_gives_the_same_output(head: type[PreTrainedModel], tmp_path: Path) -> None:
    smaller = keep_layers(bert(head), [0, 3])
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))


def test_the_argument_stays_as_it_was() -> None:
    model = bert()
    config, weights, before = model.config.to_dict(), deepcopy(model.state_dict()), output(model)
    smaller = keep_layers(model, [0, 2])
    with torch.no_grad():
        for tensor in smaller.state_dict().values():
            tensor.zero_()
    assert model.config.to_dict() == config
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert torch.equal(output(model), before)


def test_no_storage_is_shared() -> None:
    model = gpt2()
    smaller = keep_layers(model, [0, 2])
    theirs = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert not [name for name, tensor in smaller.named_parameters() if tensor.untyped_storage().data_ptr() in theirs]
    assert not [name for name, tensor in smaller.named_buffers() if tensor.untyped_storage().data_ptr() in theirs]


def test_keeping_all_gives_an_equal_copy() -> None:
    model = bert()
    copied = keep_layers(model, range(4))
    assert copied is not model
    assert torch.equal(output(copied), output(model))
    assert copied.config.to_dict() == model.config.to_dict()


def test_the_random_state_is_left_alone() -> None:
    # A model that draws random numbers whenever it is constructed.
    config = CLIPVisionConfig(**SMALL_PART, num_hidden_layers=2, image_size=8, patch_size=4)
    model = made(CLIPVisionModel, config)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    keep_layers(model, [0])
    assert torch.equal(torch.rand(4), expected)


def test_precision_is_kept_parameter_by_parameter() -> None:
    model = bert().to(torch.bfloat16)
    model.classifier.float()
    smaller = keep_layers(model, [1, 2])
    assert smaller.bert.encoder.layer[1].output.dense.weight.dtype == torch.bfloat16
    assert smaller.classifier.weight.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_is_kept() -> None:
    smaller = keep_layers(modernbert().to("cuda"), [0, 3])
    assert {tensor.device.type for tensor in [*smaller.parameters(), *smaller.buffers()]} == {"cuda"}


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_kept(training: bool) -> None:
    model = bert().train(training)
    model.bert.embeddings.eval()
    smaller = keep_layers(model, [0, 1])
    assert smaller.bert.encoder.layer[1].training is training
    assert smaller.bert.embeddings.training is False


def test_frozen_stays_frozen() -> None:
    model = bert()
    model.bert.encoder.layer[2].requires_grad_(False)
    smaller = keep_layers(model, [1, 2])
    frozen = {name for name, parameter in smaller.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in smaller.named_parameters() if name.startswith("bert.encoder.layer.1.")}


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    smaller = keep_layers(gpt2(), [0, 3])
    assert smaller.lm_head.weight is smaller.transformer.wte.weight
    assert reloaded(smaller, tmp_path).num_parameters() == smaller.num_parameters()


def test_untied_weights_stay_untied() -> None:
    smaller = keep_layers(gpt2(tie_word_embeddings=False), [0, 3])
    assert not torch.equal(smaller.lm_head.weight, smaller.transformer.wte.weight)


def test_unsaved_buffers_are_right() -> None:
    model = modernbert()
    smaller = keep_layers(model, [0, 1, 2])
    wanted = dict(model.named_buffers())
    assert list(smaller.named_buffers())
    for name, buffer in smaller.named_buffers():
        assert torch.equal(buffer, wanted[name]), name


def test_how_attention_is_computed_and_where_it_came_from_are_kept() -> None:
    model = bert(attn_implementation="eager")
    model.config._name_or_path = "somebody/model"
    smaller = keep_layers(model, [0])
    assert smaller.config._attn_implementation == "eager"
    assert smaller.config._name_or_path == "somebody/model"


def test_generation_with_a_cache_is_generation_without() -> None:
    model = gpt2()
    model.generation_config.max_new_tokens = 6
    smaller = keep_layers(model, [0, 3])
    tokens = [smaller.generate(IDS, do_sample=False, use_cache=cache, pad_token_id=0) for cache in (True, False)]
    assert torch.equal(*tokens)
    assert tokens[0].shape == (2, 14)


def test_training_the_smaller_model_reaches_every_weight() -> None:
    smaller = keep_layers(bert(), [0, 3]).train()
    smaller(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_xlnet(tmp_path: Path) -> None:
    model = made(
        XLNetForSequenceClassification, XLNetConfig(vocab_size=60, d_model=16, n_layer=4, n_head=2, d_inner=24)
    )
    smaller = keep_layers(model, [0, 1, 3])
    assert smaller.config.n_layer == 3
    assert torch.equal(output(smaller), output(cut_down(model, "transformer.layer", [0, 1, 3])))
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))


def test_layers_spread_over_parallel_lists_move_together(tmp_path: Path) -> None:
    config = XLMConfig(vocab_size=60, emb_dim=16, n_layers=4, n_heads=2, max_position_embeddings=32)
    model = made(XLMForSequenceClassification, config)
    smaller = keep_layers(model, [1, 2])
    transformer, original = smaller.transformer, model.transformer
    for name in ("attentions", "layer_norm1", "ffns", "layer_norm2"):
        for new, old in zip(getattr(transformer, name), getattr(original, name)[1:3], strict=True):
            assert all(map(torch.equal, new.state_dict().values(), old.state_dict().values())), name
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))
    assert [len(layer) for layer in find_layers(model)] == [4, 4, 4, 4]


def test_a_head_as_wide_as_the_model_is_deep_keeps_its_part_of_each_layer() -> None:
    model = made(EsmModel, EsmConfig(num_hidden_layers=4, **SMALL, mask_token_id=1))
    smaller = keep_layers(model, [1, 3])
    per_layer = model.contact_head.regression.weight.unflatten(1, (4, -1))
    assert torch.equal(smaller.contact_head.regression.weight.unflatten(1, (2, -1)), per_layer[:, [1, 3]])


def test_the_kind_of_attention_moves_with_its_layer(tmp_path: Path) -> None:
    model = modernbert()
    kinds = model.config.layer_types
    assert len(set(kinds)) == 2
    kept = [0, 3, 4, 6]
    smaller = keep_layers(model, kept)
    assert smaller.config.layer_types == [kinds[index] for index in kept]
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))


def test_a_number_of_leading_dense_layers_is_counted_anew(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        **SMALL, num_hidden_layers=5, first_k_dense_replace=3, num_key_value_heads=2, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=8, q_lora_rank=8, kv_lora_rank=8,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    model = made(DeepseekV3ForCausalLM, config)
    smaller = keep_layers(model, [0, 3, 4])
    assert [type(a.mlp) for a in smaller.model.layers] == [type(model.model.layers[i].mlp) for i in (0, 3, 4)]
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))


def test_token_ids_are_not_mistaken_for_layers() -> None:
    smaller = keep_layers(bert(layers=3, eos_token_id=[0, 1, 2]), [1])
    assert smaller.config.eos_token_id == [0, 1, 2]


def test_a_scale_by_layer_number_is_refused_unless_the_numbers_stay() -> None:
    model = gpt2(scale_attn_by_inverse_layer_idx=True)
    assert len(find_layers(keep_layers(model, [0, 1]))) == 2
    with pytest.raises(UnsupportedModelError, match="scaling"):
        keep_layers(model, [0, 2])


def test_a_used_rwkv_is_refused_because_use_has_scaled_its_layers() -> None:
    """When it first predicts, RWKV divides weights in place, by the number of the layer."""
    sizes = {"vocab_size": 60, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
    model = made(RwkvForCausalLM, RwkvConfig(**sizes, num_hidden_layers=4, rescale_every=2))
    fresh = keep_layers(model, [0, 3])
    weights = fresh.rwkv.blocks[1].attention.output.weight
    assert torch.equal(weights, model.rwkv.blocks[3].attention.output.weight)
    output(model)
    assert not torch.equal(weights, model.rwkv.blocks[3].attention.output.weight)
    with pytest.raises(UnsupportedModelError, match="has changed since it was loaded"):
        keep_layers(model, [0, 3])


def test_only_decoder_or_only_encoder_of_a_pair_has_one_stack(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60}
    model = made(BartForCausalLM, BartConfig(**sizes, encoder_layers=2, decoder_layers=4))
    smaller = keep_layers(model, [0, 3])
    assert (smaller.config.decoder_layers, smaller.config.encoder_layers) == (2, 2)
    assert torch.equal(output(reloaded(smaller, tmp_path)), output(smaller))
    encoder = made(T5EncoderModel, T5Config(vocab_size=60, d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=4))
    assert undroppable(encoder) == {0}  # the first layer alone has the table of relative positions


def test_layers_found_are_the_layers_run() -> None:
    model = bert()
    assert [layer for (layer,) in find_layers(model)] == list(model.bert.encoder.layer)


def test_undroppable_layers() -> None:
    assert undroppable(modernbert()) == {0}
    assert undroppable(bert()) == frozenset()
    assert undroppable(bert(layers=1)) == {0}


@pytest.mark.parametrize(
    ("kept", "reason"),
    [([], "empty"), ([0, 4], "out of range"), ([-1, 0], "out of range"), ([2, 1], "ascending"), ([1, 1], "repeated")],
)
def test_sets_that_are_no_sets_are_refused(kept: list[int], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        keep_layers(bert(), kept)


def albert() -> Any:
    return made(AlbertForSequenceClassification, AlbertConfig(num_hidden_layers=4, **SMALL, embedding_size=8))


def bart() -> Any:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60}
    return made(BartForSequenceClassification, BartConfig(**sizes, encoder_layers=2, decoder_layers=2))


def t5() -> Any:
    return made(T5ForConditionalGeneration, T5Config(vocab_size=60, d_model=16, d_kv=8, num_heads=2, num_layers=3))


def funnel() -> Any:
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "vocab_size": 60}
    return made(FunnelModel, FunnelConfig(**sizes, block_sizes=[2, 2], num_decoder_layers=2))


def clip() -> Any:
    part = {**SMALL_PART, "num_hidden_layers": 2}
    vision = {**part, "image_size": 8, "patch_size": 4}
    return made(CLIPModel, CLIPConfig(text_config={**part, "vocab_size": 60}, vision_config=vision))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (albert, "4 layers share their weights"),
        (bart, r"encoder-decoder pair.*model.encoder.layers \(2 layers\) and model.decoder.layers"),
        (t5, "encoder-decoder pair"),
        (clip, "joins several models"),
        (funnel, "besides decoder.layers .* it has layers in encoder.blocks"),
    ],
)
def test_models_without_one_stack_of_layers_are_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        keep_layers(make(), [0])


def test_one_half_of_a_pair_by_itself_is_no_pair() -> None:
    config = CLIPTextConfig(**SMALL, num_hidden_layers=3)
    assert keep_layers(made(CLIPTextModel, config), [0, 2]).config.num_hidden_layers == 2


def test_a_first_layer_of_its_own_kind_cannot_go() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.attn_norm is LayerNorm .* would become Identity"):
        keep_layers(modernbert(), [1, 2, 3])


def test_a_hybrid_keeps_a_layer_that_attends() -> None:
    config = JambaConfig(
        **SMALL, num_hidden_layers=4, num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=2, num_experts=2,
        expert_layer_period=8, expert_layer_offset=7, mamba_d_state=4, use_mamba_kernels=False,
    )  # fmt: skip
    model = made(JambaForCausalLM, config)
    assert len(find_layers(keep_layers(model, [0, 1, 2]))) == 3
    with pytest.raises(UnsupportedModelError, match="only recurrent layers would be left"):
        keep_layers(model, [0, 1])


def test_sliding_layers_of_a_decoder_keep_their_window() -> None:
    config = Qwen2Config(
        **SMALL,
        num_hidden_layers=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
    )
    smaller = keep_layers(made(Qwen2ForCausalLM, config), [0, 3])
    assert [layer.self_attn.sliding_window for layer in smaller.model.layers] == [None, 4]


def test_a_model_that_is_not_what_its_config_says_is_refused() -> None:
    model = bert()
    model.bert.encoder.layer[1].output.adapter = nn.Linear(16, 16)
    with pytest.raises(UnsupportedModelError, match="merge adapters"):
        keep_layers(model, [0, 1])


def test_anything_but_a_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear: expected a transformers model"):
        keep_layers(nn.Linear(2, 2), [0])  # type: ignore[arg-type]


def test_a_parent_fine_tuned_for_another_task_gets_a_fresh_head(tmp_path: Path) -> None:
    """With another number of labels, another problem type, and a classifier that is already trained."""
    parent = bert(num_labels=5, problem_type="multi_label_classification")
    parent.save_pretrained(tmp_path)
    for names in (("no", "yes"), tuple("abcde"), ()):
        model, fresh = load_pretrained(
            tmp_path, name="parent", kind=kind_of("accuracy" if names else "pearson"), label_names=names, pad_token=0
        )
        assert fresh == {"classifier.weight", "classifier.bias"}
        assert model.config.problem_type == ("single_label_classification" if names else "regression")
        assert model.classifier.out_features == max(1, len(names))
        assert torch.equal(model.bert.pooler.dense.weight, parent.bert.pooler.dense.weight)


def test_an_index_of_weights_that_are_not_read_may_name_files_that_are_not_there(tmp_path: Path) -> None:
    """Hub repositories often hold both formats, of which one is downloaded with the indices of both."""
    bert().save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    absent = {"weight_map": {"a": "pytorch_model-00001-of-00009.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(absent))
    assert resolve_model(str(tmp_path), offline=True).folder == tmp_path
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(UsageError, match="model-00002"):
        resolve_model(str(tmp_path), offline=True)


def test_models_built_by_several_threads_leave_torch_as_it_was(bert: Path) -> None:
    """While transformers builds a model it replaces the functions that initialise weights, for all threads."""
    model = BertForSequenceClassification.from_pretrained(bert)
    before = (torch.nn.init.normal_, PreTrainedModel.init_weights)
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(lambda kept: keep_layers(model, range(kept)), [1, 2, 3] * 8))
    assert (torch.nn.init.normal_, PreTrainedModel.init_weights) == before
    assert all(weight.isfinite().all() for each in built for weight in each.parameters())
