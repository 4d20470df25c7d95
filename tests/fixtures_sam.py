"""A Segment Anything model of random weights, small enough for tests."""

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def build_small_sam() -> Sam:
    torch.manual_seed(0)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=128, embed_dim=32, depth=2, num_heads=2, out_chans=32, window_size=4,
            use_rel_pos=True, global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=8
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64),
            num_multimask_outputs=3,
        ),
    ).eval()  # fmt: skip
