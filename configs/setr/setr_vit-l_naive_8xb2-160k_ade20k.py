# SETR-Naive with ViT-L/16 on ADE20K, 160k iterations, batch 16 on 8 GPUs.
# Published mIoU, single-scale / multi-scale + flip: official 48.06 / 48.80, mmseg 48.28 / 49.56.
# tools/dist_train.sh configs/setr/setr_vit-l_naive_8xb2-160k_ade20k.py 8
# Cost: 18.40 GB per GPU in training, 4.72 images/s (mmseg, V100).
# As in mmseg, the auxiliary heads have two convolutions; those of SETR have one.
_base_ = ['../_base_/models/setr_vit-l16_naive.py', '../_base_/recipes/setr_ade20k.py']

model = _base_.pop('model_settings')
model.auxiliary_head = [dict(head, num_classes=150, num_convs=2) for head in _base_.model.auxiliary_head]
