"""What engines that scatter weights need of models, of their building and of an evaluation."""

import pickle
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.integrations import deepspeed

from data.preprocessing import EvaluationProtocol
from models.fused_segformer import fuse_model
from models.inference import count_passes, protocol_logits
from training.scattering import built_whole, prepare_for_fsdp


def tiny_segformer():
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
        )
    )


def test_the_stages_of_a_fused_model_are_found():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    model = fuse_model(tiny_segformer())
    prepare_for_fsdp(model)
    assert model.get_input_embeddings() is None  # which accelerate asks for
    plugin.set_auto_wrap_policy(model)
    kinds = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert kinds == {type(stage) for stage in model.segformer.stages}
    assert pickle.loads(pickle.dumps(model))._no_split_modules == model._no_split_modules


def test_models_are_built_whole_and_the_engine_is_asked_afterwards():
    class Config:  # transformers keeps a weak reference, as SimpleNamespace has none
        def is_zero3(self):
            return True

    config = Config()
    for args in (
        SimpleNamespace(hf_deepspeed_config=config, deepspeed_plugin=None),
        SimpleNamespace(deepspeed_plugin=SimpleNamespace(dschf=config)),
    ):
        deepspeed.set_hf_deepspeed_config(config)
        try:
            with built_whole(args):
                assert not deepspeed.is_deepspeed_zero3_enabled()
            assert deepspeed.is_deepspeed_zero3_enabled()
        finally:
            deepspeed.unset_hf_deepspeed_config()
    with built_whole(SimpleNamespace(deepspeed_plugin=None)):
        assert not deepspeed.is_deepspeed_zero3_enabled()


def test_passes_are_counted_as_they_are_run():
    model, calls = tiny_segformer().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    images = [torch.zeros(3, 64, 96), torch.zeros(3, 96, 160)]
    for options in ({}, {"flip": True}, {"slide_crop": 64, "slide_stride": 32, "flip": True}):
        protocol = EvaluationProtocol(64, **options)
        for image in (*images, images):
            calls.clear()
            with torch.inference_mode():
                protocol_logits(model, image, protocol)
            assert len(calls) == count_passes(image, protocol)
    assert count_passes(images[1], protocol) == 16
