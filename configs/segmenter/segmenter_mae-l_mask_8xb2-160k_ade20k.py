# Seg-L-Mask/16 with a ViT of MAE on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Not a published experiment.
# tools/dist_train.sh configs/segmenter/segmenter_mae-l_mask_8xb2-160k_ade20k.py 8
# Layer decay and stochastic depth are those of MAE's fine-tuning on ImageNet. The rest is explained in
# segmenter_mae-b_mask_8xb2-160k_ade20k.py.
_base_ = './segmenter_mae-b_mask_8xb2-160k_ade20k.py'

checkpoint = 'https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth'
model = dict(
    backbone=dict(
        embed_dims=1024, num_layers=24, num_heads=16, drop_path_rate=0.2, init_cfg=dict(checkpoint=checkpoint)
    ),
    decode_head=dict(in_channels=1024, embed_dims=1024, num_heads=16),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.75))
