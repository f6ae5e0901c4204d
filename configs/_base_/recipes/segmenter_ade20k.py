# Segmenter on ADE20K at crop 512, 2 images per GPU. The model bases already have these sizes and classes.
_base_ = ['../datasets/ade20k.py', '../default_runtime.py', '../schedules/segmenter_160k.py']

train_dataloader = dict(batch_size=2)
