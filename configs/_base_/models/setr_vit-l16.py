# What the three SETR models change in mmseg's: SegmenterViT and Segmenter run mmseg's heads.
# A model takes it out of its bases: model = _base_.pop('setr_model')
# The weights come from timm's jx_vit_large_p16_384-b3be5167.pth, the ViT that SETR starts from
# (github.com/huggingface/pytorch-image-models, release v0.1-vitjx):
# tools/model_converters/timm2mmseg.py jx_vit_large_p16_384-b3be5167.pth pretrain/vit_large_p16.pth
setr_model = dict(
    type='Segmenter',
    pretrained=None,
    backbone=dict(
        type='SegmenterViT',
        drop_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/vit_large_p16.pth'),
    ),
    # SETR enlarges images smaller than the window in its multi-scale test only; these configs always do.
    test_cfg=dict(mode='slide', upscale_small=True),
)
