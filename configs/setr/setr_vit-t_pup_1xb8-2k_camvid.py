# SETR-PUP with ViT-T/16 on CamVid from scratch, for comparison with segmenter_vit-t_mask_1xb8-2k_camvid.py.
# Not a published experiment.
# tools/train.py configs/setr/setr_vit-t_pup_1xb8-2k_camvid.py
_base_ = './setr_vit-t_naive_1xb8-2k_camvid.py'

model = dict(
    channels_last=True,  # 1.8x on a CPU with --amp
    decode_head=dict(num_convs=4, up_scale=2, kernel_size=3),
    auxiliary_head=[dict(head, kernel_size=3) for head in _base_.model.auxiliary_head],
)
