"""mmseg's own configs, small enough for a test."""

from pathlib import Path

import mmseg

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'


def shrink(cfg):
    """The model of a config in small: width and depth only; four outputs stay four outputs."""
    model, dims = cfg.model, 32
    model.pretrained = None
    backbone = model.backbone
    outs = backbone.get('out_indices', -1)
    backbone.update(embed_dims=dims, num_heads=2, num_layers=4, img_size=64)
    backbone.update(pretrained=None, init_cfg=None)
    if not isinstance(outs, int):
        backbone.out_indices = tuple(range(4))
    heads = [
        model.decode_head,
        *(
            []
            if not model.get('auxiliary_head')
            else model.auxiliary_head
            if isinstance(model.auxiliary_head, list)
            else [model.auxiliary_head]
        ),
    ]
    for head in heads:
        c = head.in_channels
        head.in_channels = dims if isinstance(c, int) else [dims] * len(c)
        if 'embed_dims' in head:
            head.embed_dims = dims
        if head.type == 'SegmenterMaskTransformerHead':
            head.num_heads = 2
        head.channels = dims
        if head.type == 'DPTHead':
            head.post_process_channels = [dims] * 4
        if head.type == 'SETRMLAHead':
            head.mla_channels = 8
            head.in_channels = [dims] * 4
    neck = model.get('neck')
    if neck is not None:
        neck.in_channels = [dims] * 4
        neck.out_channels = dims
    if model.test_cfg.mode == 'slide':
        model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    return model
