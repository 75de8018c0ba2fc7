"""Tiny configurations of every segmentation architecture of transformers, and of UperNet over every backbone."""

import transformers as T

STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64}
PATCH_14 = VIT | {"image_size": 56, "patch_size": 14}
UPER = {"hidden_size": 16, "auxiliary_channels": 8}
NECK = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}


def upernet(backbone: type, **options) -> T.UperNetConfig:
    return T.UperNetConfig(backbone_config=backbone(out_features=ALL_STAGES, **options), **UPER)


def tiny_configs() -> dict[str, T.PretrainedConfig]:
    """All ten types of `MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING`, some in two forms."""
    beit = VIT | {"out_indices": [1, 2, 3, 4], "auxiliary_channels": 8}
    tips = PATCH_14 | {"model_type": "tipsv2_vision_model", "reshape_hidden_states": False}
    return {
        "segformer": T.SegformerConfig(**STAGES, num_attention_heads=[1] * 4, decoder_hidden_size=16),
        "upernet-convnext": upernet(T.ConvNextConfig, **STAGES),
        "upernet-swin": upernet(T.SwinConfig, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2),
        "beit": T.BeitConfig(**beit, use_relative_position_bias=True),
        "beit-absolute": T.BeitConfig(**beit, use_absolute_position_embeddings=True),
        "data2vec": T.Data2VecVisionConfig(**beit, use_relative_position_bias=True),
        "dpt": T.DPTConfig(**VIT, **NECK, backbone_out_indices=[0, 1, 2, 3]),
        "mobilevit": T.MobileViTConfig(
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 16, 16, 24, 32, 32, 64],
            num_attention_heads=2,
            aspp_out_channels=16,
        ),
        "mobilevitv2": T.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1] * 3, aspp_out_channels=16),
        "mobilenet_v2": T.MobileNetV2Config(depth_multiplier=0.25),
        "sapiens2": T.Sapiens2Config(
            **VIT,
            patch_size=16,
            num_key_value_attention_heads=2,
            head_config={"upsample_out_channels": [8, 8], "conv_out_channels": [8]},
        ),
        "tipsv2_dpt": T.Tipsv2DptConfig(
            backbone_config=tips | {"out_indices": [1, 2, 3, 4], "apply_layernorm": True}, **NECK
        ),
    }


def backbone_configs() -> dict[str, T.PretrainedConfig]:
    """UperNet over the backbones that it can take, with patches and strides that are not usual as well; a hybrid DPT,
    and tipsv2_dpt over another backbone."""
    swin = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2}
    pvt = {"num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4}
    bit = {"embedding_size": 8, "hidden_sizes": [32] * 4, "depths": [1] * 4, "num_groups": 4}
    registers = T.Dinov2WithRegistersConfig(**PATCH_14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    return {
        "swin": upernet(T.SwinConfig, **swin),
        "swinv2": upernet(T.Swinv2Config, **swin),
        "convnext": upernet(T.ConvNextConfig, **STAGES),
        "convnextv2": upernet(T.ConvNextV2Config, **STAGES),
        "resnet": upernet(T.ResNetConfig, embedding_size=8, **STAGES),
        "bit": upernet(T.BitConfig, **bit),
        "dinov2": upernet(T.Dinov2Config, **PATCH_14),
        "dinov2, patch 12": upernet(T.Dinov2Config, **VIT | {"image_size": 48}, patch_size=12),
        "dinov2_with_registers": upernet(T.Dinov2WithRegistersConfig, **PATCH_14),
        "dinov3_vit": upernet(T.DINOv3ViTConfig, **VIT, patch_size=16),
        "dinov3_convnext": upernet(T.DINOv3ConvNextConfig, **STAGES),
        "beit": upernet(T.BeitConfig, **VIT),
        "pvt_v2": upernet(T.PvtV2Config, **STAGES, **pvt),
        "vitdet": upernet(T.VitDetConfig, **VIT, pretrain_image_size=64, window_size=2, window_block_indices=[0, 1]),
        "focalnet": upernet(
            T.FocalNetConfig,
            embed_dim=8,
            hidden_sizes=[16, 32, 64, 64],
            depths=[1] * 4,
            focal_levels=[1] * 4,
            focal_windows=[3] * 4,
        ),
        "hiera": upernet(
            T.HieraConfig,
            embed_dim=8,
            image_size=[64, 64],
            depths=[1] * 4,
            num_heads=[1] * 4,
            query_stride=[2, 2],
            masked_unit_size=[8, 8],
        ),
        "dpt, hybrid": T.DPTConfig(
            is_hybrid=True,
            **VIT,
            neck_hidden_sizes=[32, 32, 16, 16],  # the first two are the backbone's own
            fusion_hidden_size=8,
            backbone_config=T.BitConfig(**bit, out_features=ALL_STAGES[:3]),
            backbone_featmap_shape=[1, 32, 4, 4],
            neck_ignore_stages=[0, 1],
            backbone_out_indices=[0, 1, 2, 3],
        ),
        "tipsv2_dpt over dinov2_with_registers": T.Tipsv2DptConfig(backbone_config=registers, **NECK),
    }


def universal_configs(num_points=64) -> dict[str, T.PretrainedConfig]:
    """The four types of `models.configurations.UNIVERSAL`; EoMT takes 64 pixels."""
    vit = VIT | {
        "num_blocks": 2,
        "patch_size": 16,
        "num_queries": 7,
        "num_register_tokens": 2,
        "num_upscale_blocks": 2,
    }
    swin = T.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=ALL_STAGES)
    wide = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32)
    detr = T.DetrConfig(
        d_model=16,
        num_queries=7,
        **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
        **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
    )
    eomt = {name: value for name, value in vit.items() if name != "intermediate_size"}
    return {
        "eomt": T.EomtConfig(**eomt, mlp_ratio=2, train_num_points=num_points),
        "eomt_dinov3": T.EomtDinov3Config(**vit, train_num_points=num_points),
        "mask2former": T.Mask2FormerConfig(
            backbone_config=swin,
            **wide,
            dim_feedforward=32,
            num_attention_heads=2,
            encoder_layers=1,
            decoder_layers=3,
            num_queries=7,
            train_num_points=num_points,
        ),
        "maskformer": T.MaskFormerConfig(
            backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=32
        ),
    }
