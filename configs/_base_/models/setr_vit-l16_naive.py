# SETR-Naive with ViT-L/16.
_base_ = ['mmseg::_base_/models/setr_naive.py', './setr_vit-l16.py']

model = _base_.pop('setr_model')
