# SETR-PUP with ViT-L/16: mmseg's heads on SegmenterViT and Segmenter.
# SETR's pretrained ViT is timm's jx_vit_large_p16_384-b3be5167.pth (github.com/huggingface/pytorch-image-models,
# release v0.1-vitjx); tools/model_converters/timm2mmseg.py SOURCE pretrain/vit_large_p16.pth
# SETR has a fourth auxiliary head, on the last block, which mmseg left out.
_base_ = 'mmseg::_base_/models/setr_pup.py'

model = dict(
    type='Segmenter',
    pretrained=None,
    backbone=dict(
        type='SegmenterViT',
        drop_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/vit_large_p16.pth'),
    ),
    # SETR enlarges images below the window in its multi-scale test; here in the single-scale one too
    test_cfg=dict(mode='slide', upscale_small=True),
)
