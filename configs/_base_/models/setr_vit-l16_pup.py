# SETR-PUP with ViT-L/16.
# SETR has a fourth auxiliary head on the last block, which mmseg leaves out.
_base_ = ['mmseg::_base_/models/setr_pup.py', './setr_vit-l16.py']

model = _base_.pop('setr_model')
